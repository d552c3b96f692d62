"""One training step of a lineage: what the model sees, and running it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from cilseg.bundle import Preprocessing
from cilseg.classes import ClassSet
from cilseg.config import OptimiserConfig, RuntimeConfig, UpdateConfig
from cilseg.data.labels import map_mask
from cilseg.data.memory import MEMORY_FILE
from cilseg.data.source import Source
from cilseg.data.transforms import TrainTransform
from cilseg.methods import Method, Stage, StepContext, StepInputs, Supervised, method_class
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import ImageReader, TrainingSet
from cilseg.train.engine import OnTick, autocast_of, device_of, fit
from cilseg_serve.images import read_image
from cilseg_serve.preprocessing import network_size_hw, prepare, restore_mask

if TYPE_CHECKING:
    from cilseg.data.taglist import TagList

KEEP = "keep"
"""Folder of a run with what later steps of the lineage need; becomes part of the version."""


def masked_set(
    source: Source,
    class_set: ClassSet,
    optimiser: OptimiserConfig,
    *,
    visible: Collection[str],
    seed: int,
    others: Literal["background", "void"] = "background",
    void_as_background: bool = False,
    preprocessing: Preprocessing | None = None,
) -> TrainingSet:
    """Training set with masks; classes outside ``visible`` become ``others``, void stays void unless told otherwise.

    Crops are drawn from the image as the network sees it: resized as ``preprocessing`` says, or at its own size.
    """
    return TrainingSet(
        size=len(source),
        read_image=partial(read_prepared, source.image_paths, preprocessing),
        read_mask=partial(_read_mapped, source, class_set, tuple(visible), others, void_as_background, preprocessing),
        transform=_transform(optimiser),
        seed=seed,
    )


# Readers are functions of the module, not closures: worker processes that are spawned get them as pickles.
def _read_mapped(
    source: Source,
    class_set: ClassSet,
    visible: tuple[str, ...],
    others: Literal["background", "void"],
    void_as_background: bool,
    preprocessing: Preprocessing | None,
    index: int,
) -> npt.NDArray[np.uint8]:
    mask = map_mask(
        source.mask(index),
        source.label_names,
        class_set,
        visible=visible,
        others=others,
        void_as_background=void_as_background,
    )
    if preprocessing is None:
        return mask
    return restore_mask(mask, *network_size_hw(mask.shape[0], mask.shape[1], preprocessing.short_side_px))


def read_prepared(files: Sequence[Path], preprocessing: Preprocessing | None, index: int) -> npt.NDArray[np.uint8]:
    """Return image ``index`` as the network sees it: resized as ``preprocessing`` says, or at its own size."""
    image = read_image(files[index])
    return image if preprocessing is None else prepare(image, preprocessing)


def tagged_set(
    tag_list: TagList,
    class_set: ClassSet,
    optimiser: OptimiserConfig,
    *,
    seed: int,
    preprocessing: Preprocessing | None = None,
    annotations: ImageReader | None = None,
) -> TrainingSet:
    """Training set with image tags, and with points or scribbles when asked for; no mask is ever opened."""
    files = [image.file for image in tag_list.images]
    return tagged_files(
        files,
        tag_list.states(class_set),
        optimiser,
        seed=seed,
        preprocessing=preprocessing,
        annotations=annotations,
    )


def tagged_files(
    files: Sequence[Path],
    states: npt.NDArray[np.int8],
    optimiser: OptimiserConfig,
    *,
    seed: int,
    preprocessing: Preprocessing | None = None,
    annotations: ImageReader | None = None,
) -> TrainingSet:
    """Training set of image files with tag states ``(N, n_fg)``: 1 present, 0 absent, -1 unknown.

    ``annotations`` maps an index to a partial mask ``(H, W)`` of the image's own size: channel ids where somebody
    pointed or scribbled, ``UNLABELLED_ID`` elsewhere.
    """
    return TrainingSet(
        size=len(files),
        read_image=partial(read_prepared, tuple(files), preprocessing),
        read_mask=partial(read_annotation, annotations, preprocessing) if annotations else None,
        tags=states,
        names=[file.stem for file in files],
        transform=_transform(optimiser),
        seed=seed,
    )


def read_annotation(annotations: ImageReader, preprocessing: Preprocessing | None, index: int) -> npt.NDArray[np.uint8]:
    """Return the partial mask of image ``index`` at the size at which the network sees that image."""
    mask = annotations(index)
    if preprocessing is None:
        return mask
    return restore_mask(mask, *network_size_hw(mask.shape[0], mask.shape[1], preprocessing.short_side_px))


def _transform(optimiser: OptimiserConfig) -> TrainTransform:
    return TrainTransform(optimiser.crop_px, optimiser.crop_scale, optimiser.color_jitter)


def run_id_of(**parts: object) -> str:
    """Return a short fingerprint of everything that decides what a run learns."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def train_base(
    model: SegmentationModel,
    data: TrainingSet,
    optimiser: OptimiserConfig,
    *,
    runtime: RuntimeConfig,
    seed: int,
    run_dir: Path,
    run_id: str,
    resume: bool = False,
    on_tick: OnTick | None = None,
) -> SegmentationModel:
    """Train a base model on masks and return it in evaluation mode."""
    method = Supervised(StepContext(model, None, UpdateConfig()))
    return _run(method, data, optimiser, runtime, seed, run_dir, run_id, resume, on_tick)


def train_increment(
    parent: SegmentationModel,
    data: TrainingSet,
    config: UpdateConfig,
    *,
    n_new: int,
    runtime: RuntimeConfig,
    seed: int,
    run_dir: Path,
    run_id: str,
    resume: bool = False,
    on_tick: OnTick | None = None,
    inputs: StepInputs | None = None,
) -> SegmentationModel:
    """Train an incremental step with ``config.method``; the parent is left as it is.

    Files that later steps of the lineage need are left in ``run_dir / KEEP``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = parent.extended(n_new)
        method = method_class(config.method)(StepContext(model, parent, config, inputs or StepInputs()))
    trained = _run(method, data, config.optimiser, runtime, seed, run_dir, run_id, resume, on_tick)
    if inputs and inputs.kept and (inputs.kept / MEMORY_FILE).is_file():  # stored images travel along the lineage
        shutil.copyfile(inputs.kept / MEMORY_FILE, run_dir / KEEP / MEMORY_FILE)
    return trained


def _run(
    method: Method,
    data: TrainingSet,
    optimiser: OptimiserConfig,
    runtime: RuntimeConfig,
    seed: int,
    run_dir: Path,
    run_id: str,
    resume: bool,
    on_tick: OnTick | None,
) -> SegmentationModel:
    def fit_part(name: str, part: Method, part_data: TrainingSet, part_optimiser: OptimiserConfig) -> None:
        with _frozen(part, part_optimiser):
            fit(
                part,
                part_data,
                part_optimiser,
                run_dir=run_dir / name,
                run_id=f"{run_id}-{name}",
                runtime=runtime,
                resume=resume,
                on_tick=on_tick,
            )

    run_dir.mkdir(parents=True, exist_ok=True)
    stage = Stage(
        run_dir=run_dir, seed=seed, device=device_of(runtime), autocast=partial(autocast_of, runtime), fit=fit_part
    )
    with torch.random.fork_rng(), _frozen(method, optimiser):
        torch.manual_seed(seed)
        data = method.prepare(data, stage)
        torch.manual_seed(seed)
        fit(method, data, optimiser, run_dir=run_dir, run_id=run_id, runtime=runtime, resume=resume, on_tick=on_tick)
        method.finish(data, stage)
    shutil.rmtree(run_dir / KEEP, ignore_errors=True)
    (run_dir / KEEP).mkdir()
    method.keep(run_dir / KEEP)
    return method.model.eval()


@contextmanager
def _frozen(method: Method, optimiser: OptimiserConfig) -> Iterator[None]:
    """Freeze what the settings say while a method trains."""
    networks = [method.model, *method._old]
    for network in networks:
        network.backbone.freeze(optimiser.frozen_stages)
    method.model.freeze_norm(optimiser.freeze_norm)
    try:
        yield
    finally:
        method.model.freeze_norm(False)
        for network in networks:
            network.backbone.freeze(-1)
