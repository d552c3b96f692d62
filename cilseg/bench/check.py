"""Looking before training: split sizes against the published ones, every file, and what it will cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cilseg.bench.config import BASE
from cilseg.bench.data import ProtocolData, source_of
from cilseg.bench.plan import Cell, training_rows
from cilseg.config import OptimiserConfig
from cilseg.data.check import check_source
from cilseg.data.protocol import Rule
from cilseg.data.transforms import TrainTransform
from cilseg.errors import FaultCollector
from cilseg.models.build import new_model
from cilseg.train.dataset import TrainingSet
from cilseg.train.engine import Tick
from cilseg.train.steps import train_base

_PROBE_IMAGES = 2
_PROBE_ITERATIONS = 3


@dataclass(frozen=True)
class SplitSize:
    """Images of one step under one rule, before and after the withheld ones are taken out of the base step."""

    rule: Rule
    step: int
    images: int
    published: int | None
    trained: int


def split_sizes(data: ProtocolData) -> list[SplitSize]:
    """Return the number of images of every rule and step."""
    found = []
    for rule in data.config.rules:
        published = data.config.data.sizes.get(rule)
        for step in range(len(data.config.step_sizes)):
            rows = data.rows(rule, step)
            trained = data.without_withheld(step, rows) if step == 0 else rows
            found.append(SplitSize(rule, step, len(rows), published[step] if published else None, len(trained)))
    return found


def check_sizes(data: ProtocolData) -> None:
    """Compare lists and splits with the published sizes that the protocol names.

    Raises:
        InputError: sizes that differ, or steps without an image, all of them with both numbers.
    """
    config = data.config
    faults = FaultCollector(f"Split sizes of protocol {config.name}")
    trained = {source_of(config, step): source for step, source in enumerate(data.train)}
    for name, source in config.data.sources.items():
        for opened, published in ((trained.get(name), source.train_images), (data.judges.get(name), source.val_images)):
            if opened is not None and published is not None and len(opened) != published:
                faults.add(
                    f"list {opened.split!r} of source {name!r} has {len(opened)} images, the published one {published}"
                )
    for size in split_sizes(data):
        if size.published is not None and size.images != size.published:
            faults.add(f"{size.rule}, step {size.step}: {size.images} images, the published split has {size.published}")
        if not size.trained:
            faults.add(f"{size.rule}, step {size.step}: no image to train on")
    faults.raise_if_any(
        "The lists or the masks are not those of the papers. Get them, or take data.sizes and the *_images keys out of "
        "a copy of the protocol to run it anyway."
    )


def check_files(data: ProtocolData) -> None:
    """Decode every image and mask once.

    Raises:
        InputError: files that cannot be used, or classes without a pixel in the training masks.
    """
    class_set = data.class_set
    protocol = data.config.protocol("overlap")
    for step, source in enumerate(data.train):
        if all(source is not earlier for earlier in data.train[:step]):
            own = [s for s in range(len(data.train)) if data.train[s] is source]
            check_source(source, class_set=class_set, needed=[n for s in own for n in protocol.step_classes(s)])
    for source in data.judges.values():
        check_source(source, class_set=class_set)


@dataclass(frozen=True)
class Cost:
    """Iterations that are left, and seconds where a unit cost is known."""

    row: str
    cells: int
    iterations: int
    seconds: float
    measured: bool
    """From finished cells of the row; else from the probe."""


def costs(
    data: ProtocolData, cells: Sequence[Cell], results: Mapping[Cell, Mapping[str, Any]], *, probe_s: float
) -> list[Cost]:
    """Return the cost of the unfinished cells, row by row.

    Args:
        data: the opened protocol.
        cells: what will run.
        results: finished cells.
        probe_s: seconds per image of one iteration of base training, see :func:`probe`.
    """
    found = []
    for row in dict.fromkeys(c.row for c in cells):
        left = [c for c in cells if c.row == row and c not in results]
        iterations, probed = 0, 0.0
        for cell in left:
            for optimiser in _optimisers(data, cell):
                count = max(1, len(training_rows(data, cell)) // optimiser.batch_size) * optimiser.epochs
                iterations += count
                area = (optimiser.crop_px / data.config.base[0].crop_px) ** 2
                probed += count * optimiser.batch_size * probe_s * area
        done = [r for c, r in results.items() if c.row == row and r["iterations"]]
        if done and left:
            per_iteration = sum(r["train_s"] for r in done) / sum(r["iterations"] for r in done)
            found.append(Cost(row, len(left), iterations, iterations * per_iteration, measured=True))
        elif left:
            found.append(Cost(row, len(left), iterations, probed, measured=False))
    return found


def _optimisers(data: ProtocolData, cell: Cell) -> tuple[OptimiserConfig, ...]:
    if cell.row == BASE:
        return data.config.base
    return (data.config.update_config(cell.row).optimiser,)


def probe(data: ProtocolData) -> float:
    """Return measured seconds per image of an iteration of base training, on noise, without pretrained weights.

    A method that also runs the old model or a localizer costs more than this.
    """
    config = data.config
    optimiser = config.base[0].model_copy(update={"epochs": 1, "batch_size": _PROBE_IMAGES, "freeze_norm": False})
    bare = config.model.model_copy(update={"weights": "none"})
    model = new_model(bare, data.classes_until(0), seed=0)
    side = optimiser.crop_px
    rng = np.random.Generator(np.random.PCG64(0))
    image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (side, side), dtype=np.uint8)
    examples = TrainingSet(
        size=_PROBE_IMAGES * _PROBE_ITERATIONS,
        read_image=lambda _: image,
        read_mask=lambda _: mask,
        transform=TrainTransform(side, optimiser.crop_scale, optimiser.color_jitter),
        seed=0,
    )
    moments: list[float] = []

    def note(tick: Tick) -> None:  # noqa: ARG001
        moments.append(time.perf_counter())

    runtime = config.runtime.model_copy(update={"workers": 0, "devices": 1, "checkpoint_every_s": 3600.0})
    with tempfile.TemporaryDirectory() as folder:
        train_base(
            model, examples, optimiser, runtime=runtime, seed=0, run_dir=Path(folder), run_id="probe", on_tick=note
        )
    # Gaps between iterations, so that building the optimiser does not count; the shortest has the fewest neighbours.
    return min(b - a for a, b in pairwise(moments)) / _PROBE_IMAGES
