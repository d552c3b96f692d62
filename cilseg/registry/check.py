"""``cilseg fsck``: is everything that the database names in the store, whole, and recorded the same way in both?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from cilseg.bundle import MANIFEST
from cilseg.errors import ArtifactError, CilsegError, NotFoundError
from cilseg.registry import ledger, lookup
from cilseg.registry.leases import expired_leases
from cilseg.registry.records import Version
from cilseg.registry.schema import aliases, versions

if TYPE_CHECKING:
    from cilseg.registry.registry import Registry

OnVersion = Callable[[str, int, int], None]
"""Called for every version: its reference, how many are done, how many there are."""


@dataclass(frozen=True)
class Report:
    """What fsck found. ``faults`` are wrong; ``notes`` only take up space (``cilseg gc`` removes them)."""

    versions: int
    files: int
    events: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not self.faults


def check_registry(registry: Registry, *, quick: bool = False, on_version: OnVersion | None = None) -> Report:
    """Compare database, event log and files; with ``quick``, without reading the files of the versions.

    Raises:
        NotFoundError: no registry.
        ArtifactError: the database cannot be used at all; the message says what to do.
    """
    faults = list(registry.database.check_integrity())
    registry.require()
    store = registry.store
    rows, log_faults, count = _records(registry)
    faults += log_faults
    files = 0
    for done, version in enumerate(rows):
        if on_version is not None:
            on_version(version.ref, done, len(rows))
        found, looked_at = _version_faults(version, quick=quick)
        faults += found
        files += looked_at
    live = registry.database.read(lookup.live_digests)
    notes = []
    try:
        notes = [f"{item.place}: {item.what}, {item.age_s / 3600:.1f} h old" for item in store.leftovers(live)]
        notes += [f"lease {lease_id}: ran out" for lease_id in expired_leases(store)]
    except (ArtifactError, ValueError) as error:
        faults.append(str(error))
    return Report(len(rows), files, count, tuple(faults), tuple(notes))


def _records(registry: Registry) -> tuple[list[Version], list[str], int]:
    """Return the versions that should be there, the faults of the records, and the number of events."""

    def work(connection: Connection) -> tuple[list[Version], list[dict[str, Any]], list[Any], list[Any]]:
        recorded = ledger.events_after(connection, 0)
        at = connection.execute(select(aliases.c.name, aliases.c.alias, aliases.c.sequence)).all()
        known = connection.execute(
            select(versions.c.name, versions.c.number, versions.c.digest, versions.c.collected_at)
        ).all()
        return lookup.versions(connection, registry.store), recorded, list(at), list(known)

    found, recorded, at, known = registry.database.read(work)
    place = registry.store.log_place()
    faults = []
    numbers = [row["sequence"] for row in recorded]
    if numbers != list(range(1, len(numbers) + 1)):
        faults.append("database: the events are not numbered 1, 2, 3, ...: some are missing")
    try:
        logged = registry.store.read_events()
    except ArtifactError as error:
        faults.append(str(error))
    else:
        differing = [a["sequence"] for a, b in zip(recorded, logged, strict=False) if not _same(a, b)]
        if differing:
            faults.append(f"{place}: event {differing[0]} differs from the database (and {len(differing) - 1} more)")
        if len(logged) > len(recorded):  # what the database has more may have been committed since
            faults.append(
                f"{place}: {len(logged)} events, the database has {len(recorded)}; run `cilseg fsck --rebuild`"
            )
    faults += _replay_faults(recorded, at, known)
    gone = {(name, number) for name, number, _, collected in known if collected is not None}
    for name, alias, sequence in at:
        number = next((row["number"] for row in recorded if row["sequence"] == sequence), None)
        if (name, number) in gone:
            faults.append(f"{name}@{alias} points at {name}:{number}, whose files were collected")
    return found, faults, len(recorded)


def _replay_faults(recorded: list[dict[str, Any]], at: list[Any], known: list[Any]) -> list[str]:
    """Compare the tables that follow from the events with what follows from the events."""
    heads: dict[tuple[str, str], int] = {}
    made: dict[tuple[str, int], tuple[str, bool]] = {}
    faults = []
    for row in recorded:
        if row["alias"] is None:
            made[row["name"], row["number"]] = (row["digest"], row["action"] == ledger.COLLECT)
            continue
        here = (row["name"], row["alias"])
        before = heads.get(here)
        expected = recorded[before - 1]["number"] if before is not None and before <= len(recorded) else None
        if row["from_number"] != expected:
            faults.append(
                f"database: event {row['sequence']} moves {row['name']}@{row['alias']} from {row['from_number']}, "
                f"but it was at {expected}"
            )
        heads[here] = row["sequence"]
    if heads != {(name, alias): sequence for name, alias, sequence in at}:
        faults.append("database: the aliases are not where their last events put them; run `cilseg fsck --rebuild`")
    if made != {(name, number): (digest, gone is not None) for name, number, digest, gone in known}:
        faults.append("database: the versions are not those that the events made; run `cilseg fsck --rebuild`")
    return faults


def _same(recorded: dict[str, Any], logged: dict[str, Any]) -> bool:
    return {key: recorded[key] for key in recorded} == {key: logged.get(key) for key in recorded}


def _version_faults(version: Version, *, quick: bool) -> tuple[list[str], int]:
    store = version.store
    faults: list[str] = []
    try:
        manifest = version.manifest
    except (ArtifactError, NotFoundError) as error:
        return [f"{version.ref}: {error}"], 1
    if not store.has(manifest):
        faults.append(f"{version.ref}: files are missing in {store.place_of(version.digest)}")
    if not quick:
        try:
            store.verify(version, deep=True)
        except ArtifactError as error:
            faults.append(f"{version.ref}: {error}")
    count = len(manifest.files) + 1
    for file_name, attachment in store.attachments(version).items():
        count += 1
        try:
            if attachment.version_digest != version.digest:
                faults.append(f"{version.ref}: attachment {file_name} was made for another version")
            elif not quick:
                store.attachment(version, file_name)
        except CilsegError as error:
            faults.append(str(error))
    faults += [f"{version.ref}: {fault}" for fault in store.strangers(version.digest, {MANIFEST, *manifest.files})]
    return faults, count
