"""Evaluate a version on its gate set and, where it has a parent or a reference, ask the gate."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.bundle import GateSet
from cilseg.data.taglist import TagList, load_tag_list
from cilseg.data.tags import ABSENT, PRESENT
from cilseg.errors import InputError, NotFoundError
from cilseg.evaluate.average_precision import AveragePrecision, average_precision_interval
from cilseg.evaluate.gate import GateExtras, GateResult, judge
from cilseg.evaluate.policy import GatePolicy
from cilseg.evaluate.run import Evaluation, JudgedModel, Progress, compare_models, evaluate_source
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Registry, Version
from cilseg.update.bundle import model_of
from cilseg.update.fuse import fuse_version
from cilseg.update.gate_report import attach_report
from cilseg.update.gate_set import check_unseen, count_attempts, halves, image_hashes, open_gate_set, trained_on
from cilseg_serve.images import read_image

EVALUATION = "evaluation.json"
CONFUSIONS = "confusions.npz"
"""Attachment: per-image confusion matrices of the last evaluation, for the power of the gate set."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What validation found: scores of the candidate (and reference), and the verdict where two were compared."""

    candidate: Version
    reference: Version | None
    scores: dict[str, Any]
    reference_scores: dict[str, Any] | None
    result: GateResult | None
    report: Path | None
    """The HTML report, attached to the candidate."""
    before_fusion: Judgement | None = None
    """The verdict on the candidate that this one was fused from."""


@dataclass(frozen=True)
class TagsToScore:
    """Tagged images from which average precision is measured for new classes that no mask was drawn for."""

    tag_list: TagList
    seen_in_training: bool = False


def policy_of(version: Version) -> GatePolicy:
    """Return the policy recorded with a version; the default where it was made before policies were recorded."""
    return GatePolicy.model_validate(version.manifest.config.get("gate", {}))


def tags_to_score(registry: Registry, ref: str | None, *, against: str | None, tags: Path) -> TagsToScore:
    """Read a tag list in which the classes that the reference lacks are the new ones.

    Raises:
        InputError, NotFoundError: faults of the list, unknown references.
    """
    candidate = registry.resolve(ref)
    reference = _reference(registry, candidate, against)
    known = reference.manifest.class_set if reference is not None else candidate.manifest.class_set
    tag_list = load_tag_list(tags, class_set=known)
    if strange := sorted(set(tag_list.new_names) - set(candidate.manifest.class_set.names)):
        raise InputError(
            f"Tag list {tags} names classes that {candidate.ref} does not know: {', '.join(strange)}. It knows: "
            f"{', '.join(candidate.manifest.class_set.foreground)}."
        )
    return TagsToScore(tag_list)


def validate_version(
    registry: Registry,
    ref: str | None,
    *,
    against: str | None = None,
    gate_set: GateSet | None = None,
    policy: GatePolicy | None = None,
    tags: TagsToScore | None = None,
    options: str = "",
    on_image: Progress | None = None,
) -> Judgement:
    """Score ``ref`` on the gate set, compare it with ``against`` (default: its parent) and attach the results.

    A fused version is judged on the half of its gate set that its fusion was not chosen on.

    Args:
        gate_set: annotated images to use instead of those that the version records.
        policy: what is asked; default: the policy recorded with the version.
        tags: tagged images for new classes without masks.
        options: further options of the command that reproduces the verdict.

    Raises:
        InputError: the version records no gate set and none is given, its images changed, or some were trained on.
        NotFoundError: unknown references, or the gate set's folder is gone.
    """
    candidate = registry.resolve(ref)
    reference = _reference(registry, candidate, against)
    wanted = gate_set or candidate.manifest.gate_set
    policy = policy or policy_of(candidate)
    if wanted is None:
        if reference is None:
            raise InputError(
                f"{candidate.ref} records no gate set. Give annotated images: cilseg validate {candidate.ref} "
                "--data DIR --split val"
            )
        result = judge(
            None,
            None,
            class_set=candidate.manifest.class_set,
            old=reference.manifest.class_set.foreground,
            policy=policy,
        )
        report = attach_report(registry, candidate, reference, result, options=options)
        return Judgement(candidate, reference, {}, None, result, report)
    source = open_gate_set(wanted)
    annotated = list(wanted.classes)
    if reference is None:
        graph = _graph(candidate)
        evaluation = evaluate_source(
            graph.predict, source, candidate.manifest.class_set, annotated=annotated, on_progress=on_image
        )
        scores = score_table(evaluation)
        _attach_scores(registry, candidate, scores, evaluation)
        return Judgement(candidate, None, scores, None, None, None)
    check_unseen(source, trained_on(registry, candidate))
    if candidate.manifest.data.get("fusion", {}).get("gate_set") == wanted.ids_sha256:
        source = source.subset(halves(source)[1])
    graph = _graph(candidate)
    comparison = compare_models(
        _judged(reference, _graph(reference)),
        _judged(candidate, graph),
        source,
        annotated=annotated,
        on_progress=on_image,
    )
    old = reference.manifest.class_set.foreground
    unmasked = [n for n in candidate.manifest.class_set.foreground if n not in old and n not in annotated]
    extras = GateExtras(
        regions=comparison.regions,
        calibration_error=comparison.calibration_error,
        tag_precision=_tag_precision(registry, candidate, graph, tags, unmasked, policy=policy),
        attempt=count_attempts(registry, candidate, ids_sha256=wanted.ids_sha256),
    )
    result = judge(
        comparison.parent.confusions,
        comparison.candidate.confusions,
        class_set=candidate.manifest.class_set,
        old=old,
        policy=policy,
        flips=comparison.flips,
        extras=extras,
    )
    since_step = _first_new_step(candidate, reference)
    scores = score_table(comparison.candidate, since_step=since_step)
    before = score_table(comparison.parent, since_step=since_step)
    _attach_scores(registry, candidate, scores, comparison.candidate)
    report = attach_report(
        registry,
        candidate,
        reference,
        result,
        comparison=comparison,
        source=source,
        ids_sha256=wanted.ids_sha256,
        options=options,
    )
    return Judgement(candidate, reference, scores, before, result, report)


def fuse_on_regression(
    registry: Registry,
    judgement: Judgement,
    *,
    gate_set: GateSet | None = None,
    options: str = "",
    on_image: Progress | None = None,
) -> Judgement | None:
    """Fuse a candidate that was not promoted with its reference, register the fusion and judge it.

    Returns:
        None where nothing was to be done (promoted, nothing compared) or no fusion keeps the old classes.
    """
    result, reference = judgement.result, judgement.reference
    if result is None or reference is None or result.verdict == "PROMOTE" or not result.n_images:
        return None
    fused = fuse_version(registry, judgement.candidate, reference, policy=result.policy, gate_set=gate_set)
    if fused is None:
        _LOGGER.warning(
            "No fusion of %s with %s keeps every old class within the tolerance on the first half of the gate set; "
            "nothing was registered.",
            judgement.candidate.ref,
            reference.ref,
        )
        return None
    judged = validate_version(
        registry,
        fused.ref,
        against=reference.ref,
        gate_set=gate_set,
        policy=result.policy,
        options=options,
        on_image=on_image,
    )
    return dataclasses.replace(judged, before_fusion=judgement)


def score_table(evaluation: Evaluation, *, since_step: int | None = None) -> dict[str, Any]:
    """Return old, new and all (convention C) and the IoU of each class, as percentages; null where undefined."""
    scores = evaluation.scores
    reported = scores.reported(evaluation.class_set, since_step=since_step)
    return {
        **{key: _percent(float(value)) for key, value in reported.items()},
        "iou": {n: _percent(float(v)) for n, v in zip(evaluation.class_set.names, scores.class_iou, strict=True)},
        "images": len(evaluation.ids),
    }


def load_confusions(registry: Registry, version: Version, *, ids: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Return the (N, C, C) confusions of the last evaluation; None where it was not on exactly these images."""
    try:
        path = registry.attachment(version, CONFUSIONS).path
    except NotFoundError:
        return None
    with np.load(path, allow_pickle=False) as stored:
        if stored["ids"].tolist() != list(ids):
            return None
        return np.asarray(stored["confusions"], dtype=np.int64)


def _attach_scores(registry: Registry, version: Version, scores: dict[str, Any], evaluation: Evaluation) -> None:
    metrics = {f"mIoU {key}": scores[key] for key in ("old", "new", "all")}
    stored = io.BytesIO()
    np.savez_compressed(stored, ids=np.array(evaluation.ids), confusions=evaluation.confusions)
    registry.attach(version, CONFUSIONS, stored.getvalue(), kind="confusions")
    data = json.dumps(scores, indent=2).encode()
    registry.attach(version, EVALUATION, data, kind="evaluation", metadata={"metrics": metrics})


def _percent(share: float) -> float | None:
    return None if share != share else round(100 * share, 2)


def _reference(registry: Registry, candidate: Version, against: str | None) -> Version | None:
    if against is not None:
        return registry.resolve(against)
    parent = candidate.manifest.parent
    if parent is None:
        return None
    try:
        return registry.resolve(parent)
    except NotFoundError as error:
        raise NotFoundError(
            f"The parent of {candidate.ref} ({parent[:19]}...) is not in this registry. Name what to compare with: "
            "--against REF."
        ) from error


def _graph(version: Version) -> InferenceGraph:
    return InferenceGraph(model_of(version), version.manifest.preprocessing).eval()


def _judged(version: Version, graph: InferenceGraph) -> JudgedModel:
    return JudgedModel(graph.predict, version.manifest.class_set, predict_sure=graph.predict_sure)


def _first_new_step(candidate: Version, reference: Version) -> int | None:
    last = reference.manifest.class_set.last_step
    return last + 1 if candidate.manifest.class_set.last_step > last else None


def _tag_precision(
    registry: Registry,
    candidate: Version,
    graph: InferenceGraph,
    tags: TagsToScore | None,
    names: list[str],
    *,
    policy: GatePolicy,
) -> tuple[AveragePrecision, ...]:
    """Return the average precision of ``names`` (new classes without masks) from image tags."""
    if tags is None or not names:
        return ()
    class_set, files = candidate.manifest.class_set, [image.file for image in tags.tag_list.images]
    seen = tags.seen_in_training or bool(set(image_hashes(files)) & set(trained_on(registry, candidate)))
    states = tags.tag_list.states(class_set)
    scores = np.stack([graph.class_scores(read_image(file)) for file in files])
    found = []
    for name in names:
        column = class_set.id_of(name)
        told = np.isin(states[:, column - 1], (PRESENT, ABSENT))
        found.append(
            average_precision_interval(
                name,
                scores[told, column],
                states[told, column - 1] == PRESENT,
                alpha=policy.alpha,
                seed=policy.seed,
                seen_in_training=seen,
            )
        )
    return tuple(entry for entry in found if entry is not None)
