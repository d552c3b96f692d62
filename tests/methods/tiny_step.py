"""A step small enough for every method to take it: scenes of 64 px, a base of two classes, one or two new ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cilseg.bench.annotator import points_from_mask, scribbles_from_mask
from cilseg.classes import ClassSet
from cilseg.config import ModelConfig, OptimiserConfig, RuntimeConfig, UpdateConfig
from cilseg.data.annotations import POINT_RADIUS_PX, paint_points
from cilseg.data.labels import map_mask
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import Source, open_source
from cilseg.methods import METHODS, Replay, StepInputs
from cilseg.models.build import new_model
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import TrainingSet
from cilseg.train.engine import OnTick
from cilseg.train.steps import KEEP, masked_set, read_prepared, tagged_files, train_base, train_increment

CLASSES = SCENE_CLASSES[:4]
OLD = CLASSES[:2]
RUNTIME = RuntimeConfig(device="cpu", precision="32-true", threads=1)
_RATES = dict.fromkeys(("lr_body", "lr_head", "lr_classifier", "lr_new_classifier", "lr_localizer"), 0.02)
OPTIMISER = OptimiserConfig(epochs=2, batch_size=4, crop_px=64, crop_scale=(0.7, 1.0), **_RATES)
_WEAK = {"weak": {"epochs": 1, "batch_size": 4, "crop_px": 64}, "scales": (1.0,)}
OPTIONS: dict[str, dict[str, Any]] = {
    "wilson": {"warm_up_epochs": 1},
    "cam": _WEAK,
    "seam": _WEAK,
    "eps": _WEAK,
    "ss": {**_WEAK, "weak": {**_WEAK["weak"], "epochs": 2}, "warm_up_epochs": 1},
}
"""What makes each method quick."""


@dataclass(frozen=True)
class World:
    """Scenes, and base models of two classes with a linear and with a cosine classifier."""

    root: Path
    source: Source
    parents: dict[str, SegmentationModel]
    kept: Path
    """What the base with the linear classifier left."""

    def parent_of(self, method: str) -> SegmentationModel:
        return self.parents["cosine" if method == "pifs" else "linear"]


def make_world(root: Path) -> World:
    generate_scenes(root / "scenes", train=12, val=0, size_px=64, seed=3, classes=CLASSES)
    source = open_source(root / "scenes", split="train")
    classes = ClassSet.base(OLD)
    parents = {}
    for kind in ("linear", "cosine"):
        config = ModelConfig(
            backbone="test_resnet", output_stride=8, head_channels=16, head_dilations=(1, 2), classifier=kind
        )
        data = masked_set(source, classes, OPTIMISER, visible=OLD, seed=0)
        parents[kind] = train_base(
            new_model(config, classes, seed=0),
            data,
            OPTIMISER,
            runtime=RUNTIME,
            seed=0,
            run_dir=root / kind,
            run_id="base",
        )
    return World(root, source, parents, root / "linear" / KEEP)


def class_set(new: Collection[str]) -> ClassSet:
    return ClassSet.base(OLD).extend(list(new), step=1)


def data_for(
    world: World, method: str, *, new: Collection[str] = CLASSES[2:3], images: int = 8, step: int = 1, seed: int = 0
) -> TrainingSet:
    """What ``method`` may see of the first scenes, and no more."""
    source = world.source.subset(world.source.ids[:images])
    kind = METHODS[method]
    classes = class_set(new) if step == 1 else class_set(CLASSES[2:3]).extend(list(new), step=step)
    if kind.supervision in ("masks", "shots"):
        visible = classes.foreground if kind.sees_old_masks else tuple(new)
        return masked_set(source, classes, OPTIMISER, visible=visible, seed=seed)
    states = np.array([[int(c in source.classes_in(i)) for c in classes.foreground] for i in range(images)], np.int8)
    readers = {"points": _points, "scribbles": _scribbles}
    reader = readers.get(kind.supervision)
    annotations = partial(reader, source, classes, [classes.id_of(c) for c in new]) if reader else None
    return tagged_files(source.image_paths, states, OPTIMISER, seed=seed, annotations=annotations)


def _points(source: Source, classes: ClassSet, new: list[int], index: int) -> np.ndarray:
    mask = map_mask(source.mask(index), source.label_names, classes, visible=classes.foreground)
    return paint_points(points_from_mask(mask, new), height=64, width=64, radius=POINT_RADIUS_PX)


def _scribbles(source: Source, classes: ClassSet, new: list[int], index: int) -> np.ndarray:
    mask = map_mask(source.mask(index), source.label_names, classes, visible=classes.foreground)
    return scribbles_from_mask(mask, new)


def replay_of(world: World, names: Collection[str] = OLD, *, images: int = 3) -> Replay:
    """The last scenes, as if found for each of ``names``."""
    files = world.source.image_paths[-images:] * len(names)
    ids = [class_set(CLASSES[2:]).id_of(name) for name in names for _ in range(images)]
    return Replay(partial(read_prepared, files, None), np.array(ids, dtype=np.int64))


def inputs_for(world: World, method: str, **changes: Any) -> StepInputs:
    needs = METHODS[method].needs
    given: dict[str, Any] = {
        "replay": replay_of(world) if "replay" in needs else None,
        "saliency": "builtin" if "saliency" in needs else None,
        "kept": world.kept,
    }
    return StepInputs(**{**given, **changes})


def update_config(method: str, *, optimiser: OptimiserConfig = OPTIMISER, **options: Any) -> UpdateConfig:
    sections = {method: {**OPTIONS.get(method, {}), **options}} if method in OPTIONS or options else {}
    return UpdateConfig(method=method, optimiser=optimiser, **sections)


def take_step(
    world: World,
    method: str,
    run_dir: Path,
    *,
    parent: SegmentationModel | None = None,
    data: TrainingSet | None = None,
    inputs: StepInputs | None = None,
    config: UpdateConfig | None = None,
    n_new: int = 1,
    seed: int = 0,
    resume: bool = False,
    runtime: RuntimeConfig = RUNTIME,
    on_tick: OnTick | None = None,
) -> SegmentationModel:
    """Train one step; whatever is not given is the method's usual."""
    return train_increment(
        parent or world.parent_of(method),
        data or data_for(world, method, new=CLASSES[2 : 2 + n_new]),
        config or update_config(method),
        n_new=n_new,
        runtime=runtime,
        seed=seed,
        run_dir=run_dir,
        run_id="tiny",
        resume=resume,
        inputs=inputs or inputs_for(world, method),
        on_tick=on_tick,
    )


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Return the keys that only one state has or whose bits differ."""
    both = ours.keys() & theirs.keys()
    return sorted((ours.keys() ^ theirs.keys()) | {k for k in both if not torch.equal(ours[k], theirs[k])})
