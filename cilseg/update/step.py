"""An incremental step: a parent and a tag list (or masks) in, a candidate version with its verdict out."""

from __future__ import annotations

from dataclasses import dataclass

from cilseg.data.check import check_source
from cilseg.errors import InputError
from cilseg.evaluate.run import Progress as OnImage
from cilseg.methods import method_class
from cilseg.registry import Registry, Version
from cilseg.train.engine import OnTick
from cilseg.train.steps import run_id_of, train_increment
from cilseg.update.bundle import announce, attach_pseudo_labels, model_of, register_bundle
from cilseg.update.gate_set import check_unseen, image_hashes, open_gate_set, trained_on
from cilseg.update.judge import Judgement, TagsToScore, fuse_on_regression, validate_version
from cilseg.update.material import Material, UpdateRequest, check_supervision, gather

CANDIDATE = "candidate"


@dataclass(frozen=True)
class UpdateResult:
    """The candidate, its parent, and what the gate says."""

    candidate: Version
    parent: Version
    judgement: Judgement


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
    check_supervision(request, method_class(config.update.method))
    parent = registry.resolve(request.parent)
    registry.check_target(request.name or parent.name)
    old_model = model_of(parent)
    step = gather(parent, request)
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
        inputs=step.inputs,
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
        tag_list=step.tag_list.path if step.tag_list else None,
    )
    attach_pseudo_labels(registry, candidate, run_dir)
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
        tags=TagsToScore(step.tag_list, seen_in_training=True) if step.tag_list is not None else None,
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


def _check_gate_set(registry: Registry, step: Material) -> None:
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
