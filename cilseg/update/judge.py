"""Evaluate a version on its gate set and, where it has a parent or a reference, ask the gate."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.bundle import GateSet
from cilseg.data.source import Source, open_source
from cilseg.errors import InputError, NotFoundError
from cilseg.evaluate.gate import GatePolicy, GateResult, judge
from cilseg.evaluate.report import write_report
from cilseg.evaluate.run import Comparison, Evaluation, JudgedModel, Progress, compare_models, evaluate_source
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Registry, Version
from cilseg.update.bundle import model_of

GATE_JSON = "gate.json"
GATE_HTML = "gate.html"
EVALUATION = "evaluation.json"


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


def validate_version(
    registry: Registry,
    ref: str | None,
    *,
    against: str | None = None,
    gate_set: GateSet | None = None,
    policy: GatePolicy | None = None,
    on_image: Progress | None = None,
) -> Judgement:
    """Score ``ref`` on the gate set, compare it with ``against`` (default: its parent) and attach the results.

    Args:
        gate_set: annotated images to use instead of those that the version records.

    Raises:
        InputError: the version records no gate set and none is given, or its images changed.
        NotFoundError: unknown references, or the gate set's folder is gone.
    """
    candidate = registry.resolve(ref)
    reference = _reference(registry, candidate, against)
    wanted = gate_set or candidate.manifest.gate_set
    if wanted is None:
        if reference is None:
            raise InputError(
                f"{candidate.ref} records no gate set. Give annotated images: cilseg validate {candidate.ref} "
                "--data DIR --split val"
            )
        return _without_gate_set(registry, candidate, reference, policy)
    source = open_gate_set(wanted)
    annotated = list(wanted.classes)
    if reference is None:
        evaluation = evaluate_source(
            _predictor(candidate).predict,
            source,
            candidate.manifest.class_set,
            annotated=annotated,
            on_progress=on_image,
        )
        scores = score_table(evaluation)
        _attach_scores(registry, candidate, scores)
        return Judgement(candidate, None, scores, None, None, None)
    comparison = compare_models(
        _judged(reference), _judged(candidate), source, annotated=annotated, on_progress=on_image
    )
    old = reference.manifest.class_set.foreground
    result = judge(
        comparison.parent.confusions,
        comparison.candidate.confusions,
        class_set=candidate.manifest.class_set,
        old=old,
        policy=policy,
        flips=comparison.flips,
    )
    scores = score_table(comparison.candidate, since_step=_first_new_step(candidate, reference))
    before = score_table(comparison.parent, since_step=_first_new_step(candidate, reference))
    _attach_scores(registry, candidate, scores)
    report = _attach_report(registry, candidate, reference, result, comparison, source)
    return Judgement(candidate, reference, scores, before, result, report)


def open_gate_set(gate_set: GateSet) -> Source:
    """Open the images that a gate set names and check that they are still the same list.

    Raises:
        InputError: the list of images changed since the version was made.
        NotFoundError: the folder is gone.
    """
    layout = gate_set.layout
    source = open_source(gate_set.root, split=gate_set.split, layout=layout, label_names=gate_set.label_names)  # type: ignore[arg-type]
    actual = source.fingerprint()["ids_sha256"]
    if actual != gate_set.ids_sha256:
        raise InputError(
            f"The gate set {gate_set.root} ({gate_set.split}) lists other images than when the version was made. "
            "Restore its list file, or judge on the new list on purpose: cilseg validate REF --data DIR --split SPLIT."
        )
    return source


def score_table(evaluation: Evaluation, *, since_step: int | None = None) -> dict[str, Any]:
    """Return old, new and all (convention C) and the IoU of each class, as percentages; null where undefined."""
    scores = evaluation.scores
    reported = scores.reported(evaluation.class_set, since_step=since_step)
    return {
        **{key: _percent(float(value)) for key, value in reported.items()},
        "iou": {n: _percent(float(v)) for n, v in zip(evaluation.class_set.names, scores.class_iou, strict=True)},
        "images": len(evaluation.ids),
    }


def _attach_scores(registry: Registry, version: Version, scores: dict[str, Any]) -> None:
    metrics = {f"mIoU {key}": scores[key] for key in ("old", "new", "all")}
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


def _predictor(version: Version) -> InferenceGraph:
    return InferenceGraph(model_of(version), version.manifest.preprocessing).eval()


def _judged(version: Version) -> JudgedModel:
    return JudgedModel(_predictor(version).predict, version.manifest.class_set)


def _first_new_step(candidate: Version, reference: Version) -> int | None:
    last = reference.manifest.class_set.last_step
    return last + 1 if candidate.manifest.class_set.last_step > last else None


def _without_gate_set(
    registry: Registry, candidate: Version, reference: Version, policy: GatePolicy | None
) -> Judgement:
    result = judge(
        None, None, class_set=candidate.manifest.class_set, old=reference.manifest.class_set.foreground, policy=policy
    )
    report = _attach_report(registry, candidate, reference, result, None, None)
    return Judgement(candidate, reference, {}, None, result, report)


def _attach_report(
    registry: Registry,
    candidate: Version,
    reference: Version,
    result: GateResult,
    comparison: Comparison | None,
    source: Source | None,
) -> Path:
    manifest = candidate.manifest
    lineage: dict[str, object] = {
        "candidate": f"{candidate.ref}  {candidate.digest[:19]}",
        "compared with": f"{reference.ref}  {reference.digest[:19]}",
        "method": manifest.method,
        "new classes": ", ".join(
            n for n in manifest.class_set.foreground if n not in reference.manifest.class_set.foreground
        )
        or "none",
        "trained on": ", ".join(f"{k} {v}" for k, v in manifest.data.items() if k in ("images", "split", "untagged")),
        "seed": manifest.seed,
        "gate set": f"{source.root} ({source.split}, {len(source)} images)" if source else "none",
        "made": manifest.created_at,
    }
    command = f"cilseg validate {candidate.ref} --against {reference.ref} --registry {registry.root}"
    with tempfile.TemporaryDirectory(prefix="cilseg-gate-") as temporary:
        html, data = Path(temporary) / GATE_HTML, Path(temporary) / GATE_JSON
        write_report(
            result,
            path_html=html,
            path_json=data,
            class_set=manifest.class_set,
            comparison=comparison,
            title=f"{candidate.ref} against {reference.ref}",
            lineage=lineage,
            command=command,
        )
        page = registry.attach(candidate, GATE_HTML, html, kind="gate report")
        registry.attach(candidate, GATE_JSON, data, kind="gate", metadata={"verdict": result.verdict})
    return page.path
