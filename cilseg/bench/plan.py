"""The plan of a protocol: one base per rule and seed, then method x step x seed; what decides each cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cilseg.bench.config import BASE, ProtocolConfig
from cilseg.bench.data import ProtocolData
from cilseg.bench.settings import Settings
from cilseg.bundle import hash_file
from cilseg.config import ModelConfig, OptimiserConfig, UpdateConfig
from cilseg.data.protocol import Rule
from cilseg.errors import InputError
from cilseg.methods import METHODS, method_class

_GIVEN = {"negatives", "absent", "shots", "memory", "replay", "saliency", "prior", "base"}
"""Fields of a row that decide what it learns from."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training and its scores: a row of the table (or the base) after one step, for one rule and seed."""

    rule: Rule
    seed: int
    row: str
    step: int

    @property
    def id(self) -> str:
        return f"{self.rule}/seed{self.seed}/{self.row}/step{self.step}"

    @property
    def parent(self) -> Cell | None:
        """The cell whose model this one starts from."""
        if self.row == BASE:
            return None
        return Cell(self.rule, self.seed, BASE if self.step == 1 else self.row, self.step - 1)


def planned(config: ProtocolConfig) -> list[Cell]:
    """Return every cell, each after its parent."""
    cells = []
    for rule in config.rules:
        seeds = {name: config.seeds_of(name, rule) for name in config.methods}
        for seed in sorted({seed for own in seeds.values() for seed in own}):
            cells.append(Cell(rule, seed, BASE, 0))
            for name in config.methods:
                if seed in seeds[name]:
                    cells += [Cell(rule, seed, name, step) for step in range(1, len(config.step_sizes))]
    return cells


def identity(data: ProtocolData, cell: Cell, *, parent_weights: str | None) -> dict[str, Any]:
    """Return everything that decides what a cell learns and scores, without paths.

    Args:
        data: the opened protocol.
        cell: the cell.
        parent_weights: hash of the parent's weights, None for a base.
    """
    config = data.config
    settings: dict[str, Any] = {"base": [c.model_dump(mode="json") for c in config.base]}
    if cell.row != BASE:
        row = config.methods[cell.row]
        given = row.model_dump(mode="json", include=_GIVEN, exclude_defaults=True)
        update, method = config.update_config(cell.row), method_class(config.method_of(cell.row))
        options = update.options(method.name, method.options_type).model_dump(mode="json")  # defaults may change
        settings = {"update": {**update.model_dump(mode="json"), method.name: options}, "given": given}
    model = config.model.model_dump(mode="json")
    weights = Path(config.model.weights)
    if weights.is_file():
        model["weights"] = hash_file(weights)
    runtime = config.runtime.model_dump(mode="json", include={"precision", "devices"})
    return {
        "rule": cell.rule,
        "seed": cell.seed,
        "step": cell.step,
        "classes": list(config.classes),
        "step_sizes": list(config.step_sizes),
        "settings": config.settings.model_dump(mode="json"),
        "model": model,
        "runtime": runtime,
        "parent_weights": parent_weights,
        "train": data.fingerprint(cell.step, training_rows(data, cell)),
        "val": {name: source.fingerprint() for name, source in data.judges.items()},
        **settings,
    }


def training_rows(data: ProtocolData, cell: Cell) -> tuple[int, ...]:
    """Return the positions of the images that a cell trains on, in the source of its step.

    The base step sees its images without the withheld ones. Joint sees those of every step so far. Rows with
    ``negatives`` see the withheld images beside their step's, those with ``absent`` as many that show none of its
    classes, spread over the list: tagged absent, or with masks that show nothing.

    Raises:
        InputError: an unknown method, joint training over steps with different sources.
    """
    config = data.config
    if cell.row == BASE:
        return data.without_withheld(0, data.rows(cell.rule, 0))
    method_class(config.method_of(cell.row))
    rows = set(data.rows(cell.rule, cell.step))
    if config.method_of(cell.row) == "joint":
        if len({id(source) for source in data.train[: cell.step + 1]}) > 1:
            raise InputError("Joint training needs one source for all steps; leave the row out, or merge the folders.")
        rows = rows.union(*(data.rows(cell.rule, step) for step in range(1, cell.step)))
        rows |= set(data.without_withheld(0, data.rows(cell.rule, 0)))
    if config.methods[cell.row].negatives:
        rows |= set(data.withheld_rows(cell.step))
    if wanted := config.methods[cell.row].absent:
        new = set(config.protocol(cell.rule).step_classes(cell.step))
        absent = [i for i, found in enumerate(data.tags[cell.step]) if i not in rows and not found & new]
        rows |= {absent[k] for k in np.linspace(0, len(absent) - 1, min(wanted, len(absent))).astype(int)}
    if (shots := config.methods[cell.row].shots) is not None:
        tags = data.tags[cell.step]
        chosen = [
            [i for i in sorted(rows) if name in tags[i]][:shots]
            for name in config.protocol(cell.rule).step_classes(cell.step)
        ]
        rows = {i for found in chosen for i in found}
    return tuple(sorted(rows))


def differing(recorded: Any, now: Any, *, defaults: Any = None, prefix: str = "") -> list[str]:
    """Return the keys in which the identity of a cell that is there differs from the one wanted now.

    An option that did not exist when the cell was made, and that has its default now, is no difference: adding a method
    to cilseg must not make the cells of others stale.
    """
    defaults = _DEFAULTS if defaults is None else defaults
    if isinstance(recorded, dict) and isinstance(now, dict):
        found = []
        for key in [*recorded, *(k for k in now if k not in recorded)]:
            default = defaults.get(key) if isinstance(defaults, dict) else None
            if key in now and key not in recorded and now[key] == default:
                continue
            path = f"{prefix}.{key}" if prefix else str(key)
            found += differing(recorded.get(key), now.get(key), defaults=default or {}, prefix=path)
        return found
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        pairs = enumerate(zip(recorded, now, strict=True))
        return [k for i, (a, b) in pairs for k in differing(a, b, defaults=defaults, prefix=f"{prefix}.{i}")]
    return [] if recorded == now else [prefix]


_DEFAULTS: dict[str, Any] = {
    "update": {
        **UpdateConfig().model_dump(mode="json"),
        **{name: method.options_type().model_dump(mode="json") for name, method in METHODS.items()},
    },
    "base": OptimiserConfig().model_dump(mode="json"),  # of each cycle
    "model": ModelConfig().model_dump(mode="json"),
    "settings": Settings().model_dump(mode="json"),
}
