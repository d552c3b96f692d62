"""The whole story on generated scenes, in minutes on a CPU: what ``cilseg demo`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cilseg.bundle import write_file_atomically
from cilseg.config import Config, OptimiserConfig
from cilseg.data.labels import map_mask
from cilseg.data.protocol import IncrementalProtocol
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import Source, open_source
from cilseg.data.taglist import tags_from_source, write_tag_list
from cilseg.models.build import load_model
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Registry, Version
from cilseg.train.engine import OnTick
from cilseg.update import (
    BaseRequest,
    ExportResult,
    Judgement,
    UpdateRequest,
    export_version,
    train_version,
    update_version,
)
from cilseg_serve import Segmentation, Segmenter, predict_paths

NAME = "scenes"
NEW = ("lifebuoy", "fish")
OLD = tuple(name for name in SCENE_CLASSES if name not in NEW)
TRAIN_SCENES, VAL_SCENES = 700, 500
NEGATIVES = 100
PICTURE = "before_after.png"

TrainingBar = Callable[[str], AbstractContextManager[OnTick]]
Say = Callable[[str], None]


@dataclass
class DemoResult:
    """What the demo produced: a row of scores per model, the gate's judgement, and where things are."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    judgement: Judgement | None = None
    promoted: bool = False
    export: ExportResult | None = None
    predictions: Path | None = None
    picture: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(root: Path, config: Config, *, bar: TrainingBar, say: Say) -> DemoResult:
    """Generate scenes, train a base model, add two classes from tags, gate, promote, export, predict; then the foils.

    Running it again over the same folder reuses what is there: scenes, and versions with the same content.
    """
    result = DemoResult()
    clock = _Clock(result.seconds)
    registry = Registry.open(root / "registry")
    with clock("scenes"):
        say(f"Generating {TRAIN_SCENES} + {VAL_SCENES} scenes in {root / 'scenes'}")
        data = generate_scenes(root / "scenes", train=TRAIN_SCENES, val=VAL_SCENES, seed=config.seed)
        tags = _write_lists(data, root)
    with clock("base"), bar(f"base step: {len(OLD)} classes from masks") as on_tick:
        request = BaseRequest(NAME, data, config, classes=OLD, split="train_base", resume=True)
        base = train_version(registry, request, on_tick=on_tick)
    with clock("update"), bar(f"cilseg update --tags {tags.name}: {', '.join(NEW)}") as on_tick:
        update = update_version(
            registry, UpdateRequest(config, parent=base.ref, tags=tags, resume=True), on_tick=on_tick
        )
    judgement = result.judgement = update.judgement
    result.rows["base"] = {**(judgement.reference_scores or {}), "new": None, "all": None}
    result.rows["from image tags"] = judgement.scores
    if judgement.result is not None and judgement.result.verdict == "PROMOTE":
        registry.promote(update.candidate.ref, why="demo: the gate said PROMOTE")
        result.promoted = True
    with clock("export"):
        say("Exporting to ONNX and comparing its answers with the trained model's")
        result.export = export_version(registry, update.candidate.ref)
    val = open_source(data, split="val")
    with clock("predict"):
        result.predictions = root / "predictions"
        segmenter = Segmenter(update.candidate.ref, registry=registry)
        predict_paths(segmenter, val.image_paths[:12], result.predictions)
    foils = {}
    for label, method, optimiser in (
        ("fine-tuned, masks", "ft", _like_base(config, epochs=5)),
        ("joint, all masks", "joint", _like_base(config, epochs=10)),
    ):
        with clock(method), bar(f"foil: {label}") as on_tick:
            settings = config.update.model_copy(update={"method": method, "optimiser": optimiser})
            request_foil = UpdateRequest(
                config.model_copy(update={"update": settings}),
                parent=base.ref,
                data=data,
                classes=NEW,
                split="train" if method == "joint" else "train_step",
                name=f"{NAME}-{method}",
                resume=True,
            )
            foil = update_version(registry, request_foil, on_tick=on_tick)
        result.rows[label] = foil.judgement.scores
        foils[method] = foil.candidate
    result.picture = root / PICTURE
    _draw(result.picture, val, {"base": base, "fine-tuned": foils["ft"], "from tags": update.candidate})
    return result


def _like_base(config: Config, *, epochs: int) -> OptimiserConfig:
    rates = config.train.optimiser
    return rates.model_copy(update={"epochs": epochs, "lr_new_classifier": rates.lr_classifier})


def _write_lists(data: Path, root: Path) -> Path:
    """Write the lists of both steps (overlap protocol) and the tag list; return the tag list's path."""
    train = open_source(data, split="train")
    base, step = IncrementalProtocol(OLD + NEW, (len(OLD), len(NEW)), "overlap").split(train.tags())
    for name, rows in (("train_base", base), ("train_step", step)):
        write_file_atomically(data / f"{name}.txt", "".join(f"{train.ids[i]}\n" for i in rows).encode())
    without = [i for i in base if i not in set(step)][:NEGATIVES]
    tag_list = tags_from_source(train, sorted([*step, *without]), new_classes=NEW)
    return write_tag_list(root / "new_classes.json", tag_list).path


def _draw(path: Path, val: Source, models: Mapping[str, Version], *, rows: int = 4, zoom: int = 2) -> None:
    """Draw image, truth and the answer of each model for scenes that show old and new classes together."""
    mixed = [i for i in range(len(val)) if len(val.classes_in(i) & set(OLD)) >= 2]
    shown = [i for new in NEW for i in [i for i in mixed if val.classes_in(i) & set(NEW) == {new}][: rows // len(NEW)]]
    class_set = list(models.values())[-1].manifest.class_set
    graphs = [InferenceGraph(load_model(v.path, v.manifest), v.manifest.preprocessing) for v in models.values()]
    sheet = []
    for index in shown:
        image = val.image(index)
        truth = map_mask(val.mask(index), val.label_names, class_set, visible=class_set.foreground)
        big = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
        masks = [m.repeat(zoom, axis=0).repeat(zoom, axis=1) for m in (truth, *(g.predict(image) for g in graphs))]
        overlays = [Segmentation(m, class_set.names, class_set.palette).overlay(big, alpha=0.65) for m in masks]
        framed = [np.pad(cell, ((4, 4), (4, 4), (0, 0)), constant_values=255) for cell in (big, *overlays)]
        sheet.append(np.concatenate(framed, axis=1))
    picture = np.concatenate(sheet, axis=0)
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 32), "white")
    canvas.paste(Image.fromarray(picture), (0, 32))
    draw = ImageDraw.Draw(canvas)
    names = ("image", "truth", *models)
    for column, name in enumerate(names):
        draw.text(((column + 0.5) * picture.shape[1] / len(names), 18), name, "black", anchor="mm", font_size=18)
    canvas.save(path)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - started, 1)
