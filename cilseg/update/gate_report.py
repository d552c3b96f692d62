"""Write the gate's verdict and attach it to the candidate: ``gate.html`` for people, ``gate.json`` for machines."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from cilseg.data.source import Source
from cilseg.evaluate.gate import GateResult
from cilseg.evaluate.report import write_report
from cilseg.evaluate.run import Comparison
from cilseg.registry import Registry, Version
from cilseg.update.gate_set import GATE_JSON, lineage_of

GATE_HTML = "gate.html"


def attach_report(
    registry: Registry,
    candidate: Version,
    reference: Version,
    result: GateResult,
    *,
    comparison: Comparison | None = None,
    source: Source | None = None,
    ids_sha256: str | None = None,
    options: str = "",
) -> Path:
    """Write both files, attach them to ``candidate`` and return the path of the page.

    Args:
        comparison: per-image results; None without a gate set.
        source: the annotated images.
        ids_sha256: hash of the list of images, under which attempts are counted.
        options: further options of the command that reproduces the verdict.
    """
    manifest = candidate.manifest
    command = f"cilseg validate {candidate.ref} --against {reference.ref}"
    command += f" {options}" if options else ""
    command += f" --registry {shlex.quote(registry.url)}"
    with tempfile.TemporaryDirectory(prefix="cilseg-gate-") as temporary:
        html, data = Path(temporary) / GATE_HTML, Path(temporary) / GATE_JSON
        write_report(
            result,
            path_html=html,
            path_json=data,
            class_set=manifest.class_set,
            comparison=comparison,
            title=f"{candidate.ref} against {reference.ref}",
            lineage=_lineage(registry, candidate, reference, source),
            command=command,
            facts={"reference_digest": reference.digest, "gate_set": ids_sha256},
        )
        page = registry.attach(candidate, GATE_HTML, html, kind="gate report")
        registry.attach(
            candidate,
            GATE_JSON,
            data,
            kind="gate",
            metadata={"verdict": result.verdict, "gate_set": ids_sha256, "reference": reference.digest},
        )
    return page.path


def _lineage(registry: Registry, candidate: Version, reference: Version, source: Source | None) -> dict[str, object]:
    manifest = candidate.manifest
    old = reference.manifest.class_set.foreground
    rows: dict[str, object] = {
        "candidate": f"{candidate.ref}  {candidate.digest[:19]}",
        "compared with": f"{reference.ref}  {reference.digest[:19]}",
        "ancestors": " ← ".join(v.ref for v in lineage_of(registry, candidate)),
        "method": manifest.method,
        "new classes": ", ".join(n for n in manifest.class_set.foreground if n not in old) or "none",
        "trained on": ", ".join(f"{k} {v}" for k, v in manifest.data.items() if k in ("images", "split", "untagged")),
        "seed": manifest.seed,
        "gate set": f"{source.root} ({source.split}, {len(source)} images)" if source else "none",
        "made": manifest.created_at,
    }
    if fusion := manifest.data.get("fusion"):
        rows["fused"] = (
            f"{fusion['share']:.0%} of {fusion['of'][:19]}, chosen on {fusion['chosen_on_images']} other images"
        )
    return rows
