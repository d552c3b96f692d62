"""Versions as plain data, for ``cilseg list``, ``cilseg show`` and their ``--json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cilseg.errors import ArtifactError, NotFoundError
from cilseg.registry.policy import read_gate
from cilseg.registry.records import AliasEvent, Version
from cilseg.registry.references import parse_reference
from cilseg.registry.registry import Registry

if TYPE_CHECKING:
    from sqlalchemy import Connection

DAMAGED = "damaged"
TAG_LIST = "tags.json"
TRAINING_LOGS = ("train_log.jsonl", "training/log.jsonl")
_CODE = ("cilseg", "git_commit")


def summaries(registry: Registry, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per version (of ``name``). A damaged version is listed, with ``damaged`` saying why.

    Raises:
        NotFoundError: no registry, or no model of that name.
    """
    from cilseg.registry import lookup

    def work(connection: Connection) -> tuple[list[tuple[Version, Mapping[str, Any]]], dict[str, list[str]]]:
        if name is not None:
            lookup.require_name(connection, name)
        found = lookup.rows(connection, registry.store, name=name)
        return found, lookup.refs_by_digest(connection)

    found, by_digest = registry.read(work)
    return [_summary(version, row, by_digest) for version, row in found]


def details(registry: Registry, ref: str | None = None) -> dict[str, Any]:
    """Return everything about one version: its row, classes, lineage, files, attachments, metrics, histories.

    Raises:
        NotFoundError: no such version.
        ArtifactError: its manifest is missing or was changed.
    """
    from cilseg.registry import ledger, lookup
    from cilseg.registry.schema import versions as table

    version = registry.resolve(ref)
    manifest = version.manifest
    attachments: list[dict[str, Any]] = [
        {"file_name": a.file_name, "kind": a.kind, "sha256": a.sha256, "metadata": dict(a.metadata)}
        for a in registry.attachments(version).values()
    ]

    def work(connection: Connection) -> dict[str, Any]:
        where = (table.c.name == version.name) & (table.c.number == version.number)
        ((found, row),) = lookup.rows(connection, registry.store, where=where)
        moves = ledger.all_moves(connection, name=version.name)
        return {
            **_summary(found, row, lookup.refs_by_digest(connection)),
            "ancestors": ledger.ancestors(connection, row["parent"]),
            "forced": [asdict(e) for e in moves if e.forced and e.to_number == version.number],
            "history": {alias: [asdict(e) for e in moves if e.alias == alias] for alias in found.aliases},
        }

    found = registry.read(work)
    try:
        found["gate"] = read_gate(version)[0]
    except ArtifactError as error:
        found["damaged"] = found["damaged"] or str(error)
    return {
        **found,
        "class_set": manifest.classes,
        "architecture": manifest.architecture.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "seed": manifest.seed,
        "trained_at": manifest.created_at,
        "config": manifest.config,
        "data": manifest.data,
        "gate_set": manifest.gate_set.model_dump(mode="json") if manifest.gate_set else None,
        "code": {key: manifest.environment[key] for key in _CODE if key in manifest.environment},
        "environment": manifest.environment,
        "files": manifest.files,
        "tag_list": _tag_list(version),
        "training_log": _training_log(version),
        "attachments": attachments,
        "metrics": {a["file_name"]: a["metadata"]["metrics"] for a in attachments if "metrics" in a["metadata"]},
    }


def moves_of(registry: Registry, alias: str) -> tuple[str, list[AliasEvent]]:
    """Return ``name@alias`` and its moves; ``alias`` is ``name@alias``, or the alias alone where there is one model.

    Raises:
        NotFoundError: no such model or alias; the message says what there is.
        InputError: no such form, or several models to choose from.
    """
    from cilseg.registry import ledger, lookup

    parsed = parse_reference(alias if "@" in alias else f"@{alias}")

    def work(connection: Connection) -> tuple[str, list[AliasEvent]]:
        name = parsed.name if parsed.name is not None else lookup.only_name(connection)
        lookup.require_name(connection, name)
        lookup.require_alias(connection, name, parsed.alias or "")
        return f"{name}@{parsed.alias}", ledger.alias_history(connection, name, parsed.alias or "")

    return registry.read(work)


def _tag_list(version: Version) -> dict[str, Any] | None:
    """Return the file in the bundle that holds the copy of the tag list, its hash, and the hash of what it means."""
    files = version.manifest.files
    if TAG_LIST not in files:
        return None
    return {"file": TAG_LIST, "sha256": files[TAG_LIST], "content_sha256": version.manifest.data.get("tags_sha256")}


def _training_log(version: Version) -> dict[str, Any] | None:
    """Return name, number of lines and last line of the training log."""
    name = next((n for n in version.manifest.files if n in TRAINING_LOGS), None)
    if name is None:
        return None
    try:
        with version.store.source(version.digest).open(name) as stream:
            lines = stream.read().splitlines()
        last = json.loads(lines[-1]) if lines else None
    except (OSError, ValueError) as error:
        return {"file": name, "lines": None, "last": None, "fault": str(error)}
    return {"file": name, "lines": len(lines), "last": last}


def _summary(version: Version, row: Mapping[str, Any], by_digest: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "ref": version.ref,
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "created_at": version.created_at,
        "path": version.store.place_of(version.digest),
        "classes": None,
        "method": row["method"],
        "parent": _parent_ref(version.name, row["parent"], by_digest),
        "gate": row["gate"],
        "size_bytes": row["size_bytes"],
        "damaged": version.store.fault_of(version.digest),
    }
    if row["classes"] is not None:
        summary["classes"] = len(json.loads(row["classes"])) - 1
    elif summary["damaged"] is None:  # registered by a cilseg whose database had no such columns
        try:
            manifest = version.manifest
            summary |= {
                "classes": len(manifest.class_set.foreground),
                "method": manifest.method,
                "parent": _parent_ref(version.name, manifest.parent, by_digest),
            }
            summary["gate"] = read_gate(version)[0]
        except (ArtifactError, NotFoundError) as error:
            summary["damaged"] = str(error)
    return summary


def _parent_ref(name: str, digest: str | None, by_digest: Mapping[str, Sequence[str]]) -> str | None:
    """Return the parent as ``name:number``, of the same name where it has several; its digest when it is not here."""
    if digest is None:
        return None
    refs = by_digest.get(digest, [])
    return next((ref for ref in refs if ref.rpartition(":")[0] == name), refs[0] if refs else digest)
