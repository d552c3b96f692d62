"""Before training: what the gate set of a version can tell about each old class."""

from __future__ import annotations

import json

from cilseg.errors import NotFoundError
from cilseg.evaluate.policy import GatePolicy
from cilseg.evaluate.power import ClassPower, gate_power
from cilseg.evaluate.run import Progress, evaluate_source
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Registry, Version
from cilseg.update.bundle import model_of
from cilseg.update.gate_set import GATE_JSON, open_gate_set
from cilseg.update.judge import load_confusions


def power_of(
    registry: Registry, parent: Version, *, policy: GatePolicy, on_image: Progress | None = None
) -> tuple[ClassPower, ...] | None:
    """Return the power of ``parent``'s gate set for an update of it; None where it records no gate set.

    The parent's confusions are those of its last evaluation; where that was on other images, it answers them now.
    Nothing is written.

    Raises:
        InputError: the images of the gate set changed.
        NotFoundError: its folder is gone.
    """
    gate_set = parent.manifest.gate_set
    if gate_set is None:
        return None
    source, classes = open_gate_set(gate_set), parent.manifest.class_set
    confusions = load_confusions(registry, parent, ids=source.ids)
    if confusions is None or confusions.shape[1] != len(classes):
        graph = InferenceGraph(model_of(parent), parent.manifest.preprocessing).eval()
        evaluation = evaluate_source(
            graph.predict, source, classes, annotated=list(gate_set.classes), on_progress=on_image
        )
        confusions = evaluation.confusions
    return gate_power(
        confusions,
        names=classes.names,
        old=classes.foreground,
        policy=policy,
        earlier=_earlier_errors(registry, parent, ids_sha256=gate_set.ids_sha256),
    )


def _earlier_errors(registry: Registry, parent: Version, *, ids_sha256: str) -> dict[str, float]:
    """Return class -> standard error of the newest comparison with ``parent`` (else of ``parent``) on these images."""
    newest_first = sorted(registry.versions(parent.name), key=lambda v: -v.number)
    for version in [*(v for v in newest_first if v.number != parent.number), parent]:
        report = registry.attachments(version).get(GATE_JSON)
        if report is None or report.metadata.get("gate_set") != ids_sha256:
            continue
        if version.number != parent.number and report.metadata.get("reference") != parent.digest:
            continue
        try:
            rows = json.loads(registry.attachment(version, GATE_JSON).path.read_text(encoding="utf-8"))["classes"]
        except (NotFoundError, ValueError, KeyError):
            continue
        return {r["name"]: r["standard_error"] for r in rows if r["role"] != "background" and r.get("standard_error")}
    return {}
