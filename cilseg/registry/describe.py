"""Versions as plain data, for ``cilseg list``, ``cilseg show`` and their ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cilseg.errors import ArtifactError, NotFoundError
from cilseg.registry.policy import read_gate
from cilseg.registry.records import Version
from cilseg.registry.registry import Registry

DAMAGED = "damaged"


def summaries(registry: Registry, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per version (of ``name``). A damaged version is listed, with ``damaged`` saying why.

    Raises:
        NotFoundError: no registry, or no model of that name.
    """
    found = registry.versions(name)
    by_digest = _refs_by_digest(found if name is None else registry.versions())
    return [_summary(version, by_digest) for version in found]


def details(registry: Registry, ref: str | None = None) -> dict[str, Any]:
    """Return everything about one version: its row, classes, files, attachments, metrics, history of its aliases.

    Raises:
        NotFoundError: no such version.
        ArtifactError: its manifest is missing or was changed.
    """
    version = registry.resolve(ref)
    manifest = version.manifest
    attachments: list[dict[str, Any]] = [
        {"file_name": a.file_name, "kind": a.kind, "sha256": a.sha256, "metadata": dict(a.metadata)}
        for a in registry.attachments(version).values()
    ]
    return {
        **_summary(version, _refs_by_digest(registry.versions())),
        "class_set": manifest.classes,
        "architecture": manifest.architecture.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "seed": manifest.seed,
        "trained_at": manifest.created_at,
        "config": manifest.config,
        "data": manifest.data,
        "gate_set": manifest.gate_set.model_dump(mode="json") if manifest.gate_set else None,
        "environment": manifest.environment,
        "files": manifest.files,
        "attachments": attachments,
        "metrics": {a["file_name"]: a["metadata"]["metrics"] for a in attachments if "metrics" in a["metadata"]},
        "history": {
            alias: [asdict(event) for event in registry.history(version.name, alias=alias)] for alias in version.aliases
        },
    }


def _summary(version: Version, by_digest: dict[str, list[str]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "ref": version.ref,
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "created_at": version.created_at,
        "path": str(version.path),
        "classes": None,
        "method": None,
        "parent": None,
        "gate": None,
        "damaged": None,
    }
    try:
        manifest = version.manifest
        row |= {
            "classes": len(manifest.class_set.foreground),
            "method": manifest.method,
            "parent": _parent_ref(version.name, manifest.parent, by_digest),
        }
        row["gate"] = read_gate(version)[0]
    except (ArtifactError, NotFoundError) as error:
        row["damaged"] = str(error)
    return row


def _refs_by_digest(versions: Sequence[Version]) -> dict[str, list[str]]:
    refs: dict[str, list[str]] = {}
    for version in versions:
        refs.setdefault(version.digest, []).append(version.ref)
    return refs


def _parent_ref(name: str, digest: str | None, by_digest: dict[str, list[str]]) -> str | None:
    """Return the parent as ``name:number``, of the same name where it has several; its digest when it is not here."""
    if digest is None:
        return None
    refs = by_digest.get(digest, [])
    return next((ref for ref in refs if ref.rpartition(":")[0] == name), refs[0] if refs else digest)
