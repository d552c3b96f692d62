"""What an alias may be moved to: the gate's verdict, and ids that keep their names."""

from __future__ import annotations

import json

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
    try:
        report = version.store.attachment(version, GATE_FILE)
    except NotFoundError:
        return None, None
    try:
        return verdict_in(report.path.read_bytes()), report
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{report.path} holds no verdict. Judge it again: cilseg validate {version.ref}") from error


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


def judge(version: Version) -> tuple[str | None, str | None]:
    """Return why ``version`` may not be served (``None``: it may), and the name and hash of the report that says so."""
    try:
        verdict, report = read_gate(version)
    except ArtifactError as error:
        return (str(error), None) if version.manifest.parent is not None else (None, None)
    return gate_refusal(version, verdict), f"{report.file_name} {report.sha256}" if report is not None else None
