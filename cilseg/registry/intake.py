"""Taking a version in: files into the store, then one transaction that makes it visible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from cilseg.bundle import Manifest
from cilseg.errors import ArtifactError, ConflictError
from cilseg.registry import ledger, lookup, moves
from cilseg.registry.files import Progress, Source
from cilseg.registry.policy import GATE_FILE, read_gate
from cilseg.registry.records import Version

if TYPE_CHECKING:
    from cilseg.registry.registry import Registry

_ATTEMPTS = 3


class _VanishedError(Exception):
    """``cilseg gc`` removed the files between their copy and the transaction."""


@dataclass(frozen=True)
class Extras:
    """Attachments that come with a version: their sidecar entries, and where their files are."""

    entries: Mapping[str, dict[str, Any]]
    source: Source
    replace: bool = False
    """Also those that the version has already, with another content."""


def take_in(
    registry: Registry,
    name: str,
    source: Source,
    manifest: Manifest,
    *,
    who: str,
    alias: str | None = None,
    why: str = "",
    extras: Extras | None = None,
    progress: Progress | None = None,
) -> Version:
    """Register a version with its attachments: all of it becomes visible in one transaction.

    See :meth:`cilseg.registry.Registry.register`.
    """
    store = registry.store

    def work(connection: Connection) -> Version:
        if not store.has(manifest):
            raise _VanishedError
        _publish(connection, Version(name, 0, manifest.digest, "", store=store), staged)
        number = lookup.number_of(connection, name, manifest.digest)
        if number is None or lookup.is_collected(connection, name, number):
            number = number or lookup.newest_number(connection, name) + 1
            gate = _known_gate(registry, name, manifest)
            ledger.new_event(
                connection,
                action=ledger.REGISTER,
                name=name,
                number=number,
                digest=manifest.digest,
                who=who,
                why=why,
                summary=ledger.summary_of(manifest, size_bytes=size_bytes, gate=gate),
            )
        version = lookup.numbered(connection, store, name=name, number=number)
        if alias is not None:
            moves.move(
                connection,
                store,
                version=version,
                alias=alias,
                action=ledger.REGISTER,
                who=who,
                why=why,
                verified=frozenset({manifest.digest}),
            )
        return lookup.numbered(connection, store, name=name, number=number)

    for _ in range(_ATTEMPTS):
        store.put(source, manifest, progress=progress)
        size_bytes = sum(source.size(file) for file in manifest.files)
        staged = _stage(registry, name, manifest, extras, progress)
        try:
            return registry.write(work)
        except _VanishedError:
            continue
    raise ConflictError(
        f"The files of the new version of {name} were removed by `cilseg gc` each time they were written. Repeat the "
        "command when gc is done."
    )


def wanted_extras(registry: Registry, version: Version, extras: Extras) -> dict[str, dict[str, Any]]:
    """Return the attachments that ``version`` lacks and, if ``extras`` says so, those that differ."""
    here = registry.store.attachments(version)
    return {
        file_name: entry
        for file_name, entry in extras.entries.items()
        if file_name not in here
        or (
            extras.replace
            and (here[file_name].sha256, here[file_name].metadata) != (entry["sha256"], entry["metadata"])
        )
    }


def _stage(
    registry: Registry, name: str, manifest: Manifest, extras: Extras | None, progress: Progress | None
) -> list[tuple[dict[str, Any], Path]]:
    if extras is None:
        return []
    version = Version(name, 0, manifest.digest, "", store=registry.store)
    return [
        (entry, registry.store.stage_from(extras.source, file_name, entry["sha256"], progress=progress))
        for file_name, entry in wanted_extras(registry, version, extras).items()
    ]


def _publish(connection: Connection, version: Version, staged: list[tuple[dict[str, Any], Path]]) -> None:
    for entry, path in staged:
        version.store.publish(version, entry, staged=path)
        if entry["file_name"] == GATE_FILE:
            ledger.note_gate(connection, version.digest, read_gate(version)[0])


def _known_gate(registry: Registry, name: str, manifest: Manifest) -> str | None:
    """Return the verdict on this content, where it was here before under another name."""
    try:
        return read_gate(Version(name, 0, manifest.digest, "", store=registry.store))[0]
    except ArtifactError:
        return None
