"""Base training: masks in, first version of a lineage out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cilseg.classes import ClassSet
from cilseg.config import Config
from cilseg.data.check import check_source
from cilseg.data.source import Source, open_source
from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean
from cilseg.models.build import new_model
from cilseg.registry import Registry, Version
from cilseg.train.engine import OnTick
from cilseg.train.memory import store_memory
from cilseg.train.steps import KEEP, masked_set, run_id_of, train_base
from cilseg.update.bundle import announce, gate_set_of, register_bundle
from cilseg.update.gate_set import check_unseen, image_hashes

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseRequest:
    """What ``cilseg train`` is asked for.

    ``classes`` is the order of the ids 1, 2, ...; None takes every class that the data names, in the order of its
    mask values. Classes of the data outside ``classes`` are background.
    """

    name: str
    data: Path
    config: Config
    classes: Sequence[str] | None = None
    labels: str | None = None
    split: str = "train"
    gate_split: str | None = "val"
    resume: bool = False


def train_version(registry: Registry, request: BaseRequest, *, on_tick: OnTick | None = None) -> Version:
    """Train a base model and register it; the first version of a name becomes its ``production``.

    Raises:
        InputError: faults of the data or the classes, before anything is trained.
        TrainingError: the loss is not finite.
    """
    config = request.config
    registry.check_target(request.name)
    source = open_source(request.data, split=request.split, label_names=request.labels)
    gate = _open_gate(request)
    names = _classes(request, {v: n for v, n in source.label_names.items() if v})
    class_set = ClassSet.base(names)
    found = check_source(source, class_set=class_set, needed=request.classes or ())
    if unseen := [name for name in names if name not in found]:
        _LOGGER.warning(
            "%d of %d classes are in no mask and will not be learned: %s. --classes leaves them out.",
            len(unseen),
            len(names),
            ", ".join(unseen),
        )
    if gate:
        check_source(gate, class_set=class_set)
        trained = dict.fromkeys(image_hashes(source.image_paths), f"{request.data}, split {request.split!r}")
        check_unseen(gate, trained)
    fingerprint = source.fingerprint()
    run_id = run_id_of(
        kind="base",
        data=fingerprint,
        classes=names,
        model=config.model.model_dump(mode="json"),
        train=config.train.model_dump(mode="json", exclude={"memory"}),
        seed=config.seed,
    )
    run_dir = registry.root / "runs" / f"base-{run_id}"
    announce(run_dir, resume=request.resume)
    model = new_model(config.model, class_set, seed=config.seed)
    data = masked_set(
        source, class_set, config.train.optimiser, visible=names, seed=config.seed, preprocessing=model.preprocessing
    )
    train_base(
        model,
        data,
        config.train.optimiser,
        runtime=config.runtime,
        seed=config.seed,
        run_dir=run_dir,
        run_id=run_id,
        resume=request.resume,
        on_tick=on_tick,
    )
    if config.train.memory:
        store_memory(model, data, source, run_dir / KEEP, budget=config.train.memory, n_channels=len(class_set))
    first = request.name not in _names(registry)
    version = register_bundle(
        registry,
        request.name,
        model,
        class_set,
        method="base",
        config=config,
        data=dict(fingerprint),
        gate_set=gate_set_of(gate) if gate else None,
        run_dir=run_dir,
        images=source.image_paths,
    )
    if first:
        registry.promote(version.ref, why="first version of the lineage")
    return registry.resolve(version.ref)


def _open_gate(request: BaseRequest) -> Source | None:
    if request.gate_split is None:
        return None
    try:
        return open_source(request.data, split=request.gate_split, label_names=request.labels)
    except InputError as exc:
        raise type(exc)(
            f"{exc}\nThese images would judge the model: --gate-split NAME takes another list, --gate-split '' none."
        ) from exc


def _names(registry: Registry) -> list[str]:
    try:
        return registry.names()
    except NotFoundError:  # a run folder, but no version yet
        return []


def _classes(request: BaseRequest, named: dict[int, str]) -> list[str]:
    if request.classes is None:
        return [name for _, name in sorted(named.items())]
    faults = FaultCollector("--classes")
    for name in request.classes:
        if name not in named.values():
            faults.add(f"{name!r} is no class of {request.data}.{did_you_mean(name, named.values())}")
    faults.raise_if_any(f"The data names: {', '.join(named.values())}.")
    if not request.classes:
        raise InputError("--classes is empty; name at least one class, or leave the option out to take all.")
    return list(request.classes)
