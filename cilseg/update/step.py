"""An incremental step: a parent and a tag list (or masks) in, a candidate version with its verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cilseg.config import Config
from cilseg.data.source import open_source
from cilseg.data.taglist import TagList, check_trainable, load_tag_list
from cilseg.errors import InputError
from cilseg.evaluate.run import Progress as OnImage
from cilseg.methods import method_class
from cilseg.models.build import load_model
from cilseg.registry import Registry, Version
from cilseg.train.engine import OnTick
from cilseg.train.steps import masked_set, run_id_of, tagged_set, train_increment
from cilseg.update.bundle import register_bundle
from cilseg.update.judge import Judgement, validate_version

CANDIDATE = "candidate"


@dataclass(frozen=True)
class UpdateRequest:
    """What ``cilseg update`` is asked for: tags for a tag method, masks (``data``, ``classes``) for a mask method."""

    config: Config
    parent: str | None = None
    tags: Path | None = None
    image_root: Path | None = None
    untagged: str | None = None
    data: Path | None = None
    split: str = "train"
    labels: str | None = None
    classes: Sequence[str] = ()
    name: str | None = None
    """Register the result under another name than the parent's."""
    resume: bool = False


@dataclass(frozen=True)
class UpdateResult:
    """The candidate, its parent, and what the gate says."""

    candidate: Version
    parent: Version
    judgement: Judgement


def read_tags(registry: Registry, request: UpdateRequest) -> tuple[Version, TagList]:
    """Return the parent version and the checked tag list; nothing is trained or written."""
    if request.tags is None:
        raise InputError(
            f"Method {request.config.update.method!r} learns from tags: give --tags FILE "
            '({"a.jpg": ["cow"], "b.jpg": []} is a valid file).'
        )
    parent = registry.resolve(request.parent)
    tag_list = load_tag_list(
        request.tags, class_set=parent.manifest.class_set, image_root=request.image_root, untagged=request.untagged
    )
    return parent, tag_list


def update_version(
    registry: Registry, request: UpdateRequest, *, on_tick: OnTick | None = None, on_image: OnImage | None = None
) -> UpdateResult:
    """Train a candidate from ``request.parent``, register it as ``@candidate`` and ask the gate.

    Raises:
        InputError: faults of tags or data, supervision that the method does not take; before anything is trained.
        TrainingError: the loss is not finite.
    """
    method = method_class(request.config.update.method)
    if method.supervision == "tags":
        return _from_tags(registry, request, on_tick, on_image)
    return _from_masks(registry, request, on_tick, on_image)


def _from_tags(
    registry: Registry, request: UpdateRequest, on_tick: OnTick | None, on_image: OnImage | None
) -> UpdateResult:
    config, seed = request.config, request.config.seed
    parent, tag_list = read_tags(registry, request)
    check_trainable(tag_list)
    class_set = tag_list.extended(parent.manifest.class_set)
    data = tagged_set(tag_list, class_set, config.update.optimiser, seed=seed)
    run_id = run_id_of(
        kind="update",
        parent=parent.digest,
        tags=tag_list.sha256,
        files=[(image.file.name, image.file.stat().st_size) for image in tag_list.images],
        untagged=tag_list.untagged,
        update=config.update.model_dump(mode="json"),
        seed=seed,
    )
    run_dir = registry.root / "runs" / f"update-{run_id}"
    model = train_increment(
        load_model(parent.path, parent.manifest),
        data,
        config.update,
        n_new=len(tag_list.new_classes),
        runtime=config.runtime,
        seed=seed,
        run_dir=run_dir,
        run_id=run_id,
        resume=request.resume,
        on_tick=on_tick,
    )
    fingerprint = {"images": len(tag_list), "tags_sha256": tag_list.sha256, "untagged": tag_list.untagged}
    candidate = register_bundle(
        registry,
        request.name or parent.name,
        model,
        class_set,
        method=config.update.method,
        config=config,
        data=fingerprint,
        gate_set=parent.manifest.gate_set,
        run_dir=run_dir,
        parent=parent,
        tag_list=tag_list.path,
    )
    return _finish(registry, candidate, parent, on_image)


def _from_masks(
    registry: Registry, request: UpdateRequest, on_tick: OnTick | None, on_image: OnImage | None
) -> UpdateResult:
    config, seed = request.config, request.config.seed
    name = config.update.method
    if request.data is None or not request.classes:
        raise InputError(
            f"Method {name!r} learns from masks: give --data DIR (images and masks) and --classes NEW,... "
            "With image tags only, use --method wilson --tags FILE."
        )
    if request.tags is not None:
        raise InputError(f"Method {name!r} learns from masks and takes no --tags. Use --method wilson, or --data DIR.")
    parent = registry.resolve(request.parent)
    source = open_source(request.data, split=request.split, label_names=request.labels)
    class_set = parent.manifest.class_set.extend(list(request.classes), step=parent.manifest.class_set.last_step + 1)
    missing = [c for c in request.classes if c not in source.label_names.values()]
    if missing:
        raise InputError(
            f"{request.data} names no class {', '.join(missing)}; it has {', '.join(source.label_names.values())}."
        )
    visible = class_set.foreground if name == "joint" else tuple(request.classes)
    data = masked_set(source, class_set, config.update.optimiser, visible=visible, seed=seed)
    run_id = run_id_of(
        kind="update",
        parent=parent.digest,
        data=source.fingerprint(),
        classes=class_set.names,
        update=config.update.model_dump(mode="json"),
        seed=seed,
    )
    run_dir = registry.root / "runs" / f"update-{run_id}"
    model = train_increment(
        load_model(parent.path, parent.manifest),
        data,
        config.update,
        n_new=len(request.classes),
        runtime=config.runtime,
        seed=seed,
        run_dir=run_dir,
        run_id=run_id,
        resume=request.resume,
        on_tick=on_tick,
    )
    candidate = register_bundle(
        registry,
        request.name or parent.name,
        model,
        class_set,
        method=name,
        config=config,
        data=dict(source.fingerprint()),
        gate_set=parent.manifest.gate_set,
        run_dir=run_dir,
        parent=parent,
    )
    return _finish(registry, candidate, parent, on_image)


def _finish(registry: Registry, candidate: Version, parent: Version, on_image: OnImage | None) -> UpdateResult:
    registry.promote(candidate.ref, alias=CANDIDATE, why=f"result of update from {parent.ref}")
    judgement = validate_version(registry, candidate.ref, against=parent.ref, on_image=on_image)
    return UpdateResult(registry.resolve(candidate.ref), parent, judgement)
