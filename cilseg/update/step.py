"""An incremental step: a parent and a tag list (or masks) in, a candidate version with its verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cilseg.classes import ClassSet
from cilseg.config import Config
from cilseg.data.check import check_images, check_source
from cilseg.data.source import open_source
from cilseg.data.taglist import TagList, check_trainable, load_tag_list
from cilseg.errors import FaultCollector, InputError, did_you_mean
from cilseg.evaluate.run import Progress as OnImage
from cilseg.methods import method_class
from cilseg.registry import Registry, Version
from cilseg.train.dataset import TrainingSet
from cilseg.train.engine import OnTick
from cilseg.train.steps import masked_set, run_id_of, tagged_set, train_increment
from cilseg.update.bundle import announce, model_of, register_bundle
from cilseg.update.gate_set import check_unseen, image_hashes, open_gate_set, trained_on
from cilseg.update.judge import Judgement, TagsToScore, fuse_on_regression, validate_version

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
    gate: bool = True
    """Ask the gate afterwards; else the candidate is registered unjudged."""
    on_regression: Literal["keep", "fuse"] = "keep"
    """``fuse``: a candidate that is not promoted is fused with its parent and judged again."""
    resume: bool = False


@dataclass(frozen=True)
class UpdateResult:
    """The candidate, its parent, and what the gate says."""

    candidate: Version
    parent: Version
    judgement: Judgement


@dataclass(frozen=True)
class _Step:
    """A checked request: what is trained on, and what it is recorded as."""

    parent: Version
    class_set: ClassSet
    data: TrainingSet
    identity: dict[str, Any]
    """What makes the run the same run, beside parent, settings and seed."""
    fingerprint: dict[str, Any]
    images: tuple[Path, ...]
    tag_list: Path | None = None
    tags: TagList | None = None


def update_version(
    registry: Registry, request: UpdateRequest, *, on_tick: OnTick | None = None, on_image: OnImage | None = None
) -> UpdateResult:
    """Train a candidate from ``request.parent``, register it as ``@candidate`` and ask the gate.

    Raises:
        InputError: faults of tags, images, masks or the gate set, supervision that the method does not take; before
            anything is trained.
        ArtifactError: the parent's files are damaged.
        TrainingError: the loss is not finite.
    """
    config = request.config
    method = method_class(config.update.method)
    _check_supervision(request, tags=method.supervision == "tags")
    parent = registry.resolve(request.parent)
    registry.check_target(request.name or parent.name)
    old_model = model_of(parent)
    step = _from_tags(parent, request) if method.supervision == "tags" else _from_masks(parent, request)
    if request.gate:
        _check_gate_set(registry, step)
    run_id = run_id_of(
        kind="update",
        parent=parent.digest,
        **step.identity,
        update=config.update.model_dump(mode="json"),
        seed=config.seed,
    )
    run_dir = registry.root / "runs" / f"update-{run_id}"
    announce(run_dir, resume=request.resume)
    model = train_increment(
        old_model,
        step.data,
        config.update,
        n_new=len(step.class_set) - len(parent.manifest.class_set),
        runtime=config.runtime,
        seed=config.seed,
        run_dir=run_dir,
        run_id=run_id,
        resume=request.resume,
        on_tick=on_tick,
    )
    candidate = register_bundle(
        registry,
        request.name or parent.name,
        model,
        step.class_set,
        method=config.update.method,
        config=config,
        data=step.fingerprint,
        gate_set=parent.manifest.gate_set,
        run_dir=run_dir,
        images=step.images,
        parent=parent,
        tag_list=step.tag_list,
    )
    # Two candidates of one parent may give an id two names; nothing is served from this alias.
    why = f"result of update from {parent.ref}"
    registry.promote(candidate.ref, alias=CANDIDATE, why=why, class_change=True)
    if not request.gate:
        return UpdateResult(registry.resolve(candidate.ref), parent, Judgement(candidate, parent, {}, None, None, None))
    judgement = validate_version(
        registry,
        candidate.ref,
        against=parent.ref,
        policy=config.gate,
        tags=TagsToScore(step.tags, seen_in_training=True) if step.tags is not None else None,
        on_image=on_image,
    )
    fused = None
    if request.on_regression == "fuse":
        fused = fuse_on_regression(registry, judgement, on_image=on_image)
    last = fused or judgement
    if fused is not None:
        why = f"fusion of {candidate.ref} with {parent.ref}"
        registry.promote(fused.candidate.ref, alias=CANDIDATE, why=why, class_change=True)
    return UpdateResult(registry.resolve(last.candidate.ref), parent, last)


def _check_supervision(request: UpdateRequest, *, tags: bool) -> None:
    name = request.config.update.method
    faults = FaultCollector(f"Method {name!r} learns from {'tags' if tags else 'masks'}")
    if tags:
        if request.tags is None:
            faults.add('give --tags FILE ({"a.jpg": ["cow"], "b.jpg": []} is a valid file)')
        if request.data is not None or request.classes:
            faults.add("it takes no --data and no --classes: it never sees masks, and the tag list names its classes")
        other = "With masks, use --method ft or joint, --data DIR and --classes NEW,..."
    else:
        if request.tags is not None:
            faults.add("it takes no --tags")
        if request.data is None:
            faults.add("give --data DIR (images and masks)")
        if not request.classes:
            faults.add("give --classes NEW,... (what to learn from the masks)")
        other = "With image tags only, use --method wilson --tags FILE."
    faults.raise_if_any(other)


def check_tags(parent: Version, request: UpdateRequest) -> TagList:
    """Return the tag list of ``request``, checked against the parent; every image of it was decoded."""
    assert request.tags is not None
    tag_list = load_tag_list(
        request.tags, class_set=parent.manifest.class_set, image_root=request.image_root, untagged=request.untagged
    )
    check_images([image.file for image in tag_list.images], what=f"Tag list {tag_list.path}")
    return tag_list


def _from_tags(parent: Version, request: UpdateRequest) -> _Step:
    tag_list = check_tags(parent, request)
    check_trainable(tag_list)
    class_set = tag_list.extended(parent.manifest.class_set)
    return _Step(
        parent,
        class_set,
        tagged_set(
            tag_list,
            class_set,
            request.config.update.optimiser,
            seed=request.config.seed,
            preprocessing=parent.manifest.preprocessing,
        ),
        identity={
            "tags": tag_list.sha256,
            "files": [(image.file.name, image.file.stat().st_size) for image in tag_list.images],
            "untagged": tag_list.untagged,
        },
        fingerprint={"images": len(tag_list), "tags_sha256": tag_list.sha256, "untagged": tag_list.untagged},
        images=tuple(image.file for image in tag_list.images),
        tag_list=tag_list.path,
        tags=tag_list,
    )


def _from_masks(parent: Version, request: UpdateRequest) -> _Step:
    assert request.data is not None
    config, old = request.config, parent.manifest.class_set
    source = open_source(request.data, split=request.split, label_names=request.labels)
    named = [name for value, name in sorted(source.label_names.items()) if value]
    faults = FaultCollector("--classes")
    for name in request.classes:
        if name in old.names:
            faults.add(f"{name!r} is a class of {parent.ref} already; name only new ones")
        elif name not in named:
            faults.add(f"{name!r} is no class of {request.data}.{did_you_mean(name, named)}")
    faults.raise_if_any(f"The data names: {', '.join(named)}. {parent.ref} knows: {', '.join(old.foreground)}.")
    class_set = old.extend(list(request.classes), step=old.last_step + 1)
    check_source(source, class_set=class_set, needed=request.classes)
    visible = class_set.foreground if config.update.method == "joint" else tuple(request.classes)
    fingerprint = source.fingerprint()
    return _Step(
        parent,
        class_set,
        masked_set(
            source,
            class_set,
            config.update.optimiser,
            visible=visible,
            seed=config.seed,
            preprocessing=parent.manifest.preprocessing,
        ),
        identity={"data": fingerprint, "classes": class_set.names},
        fingerprint=dict(fingerprint),
        images=source.image_paths,
    )


def _check_gate_set(registry: Registry, step: _Step) -> None:
    """Read the images that will judge the candidate now, instead of after hours of training."""
    gate_set = step.parent.manifest.gate_set
    if gate_set is None:
        return
    trained = trained_on(registry, step.parent)
    trained.update(dict.fromkeys(image_hashes(step.images), "in this update"))
    try:
        source = open_gate_set(gate_set)
        check_source(source, class_set=step.class_set)
        check_unseen(source, trained)
    except InputError as exc:
        raise type(exc)(
            f"The gate set of {step.parent.ref} could not judge the result:\n{exc}\n"
            "Or train with --no-gate and judge later: cilseg validate REF --data DIR --split SPLIT."
        ) from exc
