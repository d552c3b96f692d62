"""What an alias may be moved to: the gate's verdict, and ids that keep their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, NotFoundError
from cilseg.registry.records import Attachment, Version

GATE_FILE = "gate.json"
GATE_PAGE = "gate.html"
PROMOTE = "PROMOTE"
UNGATED_ALIASES = frozenset({"candidate"})
"""Aliases that nothing is served from: they mark what is still to be judged."""


def read_gate(version: Version) -> tuple[str | None, Attachment | None]:
    """Return the gate's verdict on ``version`` and its report; ``(None, None)`` where it was not judged.

    Raises:
        ArtifactError: the report is damaged or holds no verdict.
    """
    content, report = _read(version)
    return (None, None) if content is None else (str(content["verdict"]), report)


def _read(version: Version) -> tuple[dict[str, Any] | None, Attachment | None]:
    try:
        report = version.store.attachment(version, GATE_FILE)
    except NotFoundError:
        return None, None
    try:
        content = json.loads(report.path.read_text(encoding="utf-8"))
        _ = content["verdict"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{report.path} holds no verdict. Judge it again: cilseg validate {version.ref}") from error
    return dict(content), report


def laxer(policy: Mapping[str, Any], required: Mapping[str, Any]) -> list[str]:
    """Return in what a gate policy asks less than ``required``; empty where it asks as much or more.

    Both hold the fields of ``cilseg.evaluate.policy.GatePolicy``; a field that one of them lacks has its default.
    """
    less = []

    def compare(key: str, default: float, *, more_is_laxer: bool) -> None:
        got, wanted = float(policy.get(key, default)), float(required.get(key, default))
        if got > wanted if more_is_laxer else got < wanted:
            less.append(f"{key} {got:g} instead of {wanted:g}")

    compare("tolerance_points", 3.0, more_is_laxer=True)
    compare("alpha", 0.05, more_is_laxer=True)
    compare("min_images_per_class", 20, more_is_laxer=False)
    if policy.get("correction", "none") == "none" and required.get("correction", "none") != "none":
        less.append(f"correction none instead of {required['correction']}")
    for key in ("new_class_floors", "new_class_ap_floors"):
        got, wanted = policy.get(key) or {}, required.get(key) or {}
        for name, floor in wanted.items():
            if float(got.get(name, got.get("*", 0.0))) < float(floor):
                less.append(f"{key} of {name} {float(got.get(name, got.get('*', 0.0))):g} instead of {float(floor):g}")
    return less


def terms_refusal(version: Version, content: Mapping[str, Any], parent: Version | None) -> str | None:
    """Return why a PROMOTE does not count: it was asked against another version, or with a laxer policy."""
    if parent is None:
        return None
    again = f"Run `cilseg validate {version.ref}`, or promote it all the same with --force --reason TEXT"
    reference = content.get("reference_digest")
    if reference is not None and reference != parent.digest:
        return (
            f"The gate compared {version.ref} with {str(reference)[:19]}..., not with its parent {parent.ref}. "
            f"{again}, which stays in the history."
        )
    required = parent.manifest.config.get("gate", {})
    if less := laxer(content.get("policy", {}), required):
        return (
            f"{version.ref} was judged with a laxer policy than that of its parent {parent.ref}: {'; '.join(less)}. "
            f"{again}, which stays in the history."
        )
    return None


def verdict_in(report: bytes) -> str:
    """Return the verdict of a ``gate.json``.

    Raises:
        ValueError, KeyError, TypeError: it holds none.
    """
    return str(json.loads(report)["verdict"])


def gate_refusal(version: Version, verdict: str | None) -> str | None:
    """Return why ``version`` may not be served yet, with what to do; ``None`` where it may."""
    if version.manifest.parent is None or verdict == PROMOTE:
        return None
    force = "or promote it all the same with --force --reason TEXT, which stays in the history"
    if verdict is None:
        return (
            f"{version.ref} was trained from another version and has no gate verdict. Run `cilseg validate "
            f"{version.ref}` first, {force}."
        )
    return (
        f"The gate said {verdict} for {version.ref}, not {PROMOTE}. Read {gate_page(version)}, "
        f"then update the model or the gate set and run `cilseg validate {version.ref}` again, {force}."
    )


def gate_page(version: Version) -> str:
    """Return where a reader finds the gate's report."""
    try:
        return str(version.store.attachment(version, GATE_PAGE).path)
    except (NotFoundError, ArtifactError):
        return f"{version.store.place_of(version.digest)}/attachments/{GATE_PAGE}"


def renamed_ids(current: ClassSet, target: ClassSet) -> list[str]:
    """Return the ids that would get another name, as ``"4: 'cow' -> 'sheep'"``; ids that come or go are not listed."""
    pairs = zip(current.names, target.names, strict=False)
    return [f"{i}: {was!r} -> {becomes!r}" for i, (was, becomes) in enumerate(pairs) if was != becomes]


def judge(version: Version, *, parent: Version | None = None) -> tuple[str | None, str | None]:
    """Return why ``version`` may not be served (``None``: it may), and the name and hash of the report that says so.

    ``parent`` is its parent where the registry knows it: a verdict counts only against it and on its terms.
    """
    try:
        content, report = _read(version)
    except ArtifactError as error:
        return (str(error), None) if version.manifest.parent is not None else (None, None)
    refusal = gate_refusal(version, None if content is None else str(content["verdict"]))
    if refusal is None and content is not None and version.manifest.parent is not None:
        refusal = terms_refusal(version, content, parent)
    return refusal, f"{report.file_name} {report.sha256}" if report is not None else None
