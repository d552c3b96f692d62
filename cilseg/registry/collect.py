"""``cilseg gc``: which versions nothing needs any more, and removing their files.

A version is kept where an alias points at it, where a move within the retention came from it or led to it, where it was
registered within the retention, where a running server holds it, and where the gate compares a kept version with it
(its children). Everything else may go: the rows and the history stay, the files are removed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from cilseg.errors import ArtifactError, InputError
from cilseg.registry import ledger, lookup
from cilseg.registry.killpoints import operation
from cilseg.registry.leases import expired_leases, held_digests
from cilseg.registry.schema import events
from cilseg.registry.store import STALE_S

if TYPE_CHECKING:
    from cilseg.registry.registry import Registry

DEFAULT_KEEP_DAYS = 90.0


@dataclass(frozen=True)
class Decision:
    """One version, and why it is kept; no reasons: it may go."""

    ref: str
    digest: str
    size_bytes: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """What gc found and, unless it was a dry run, removed."""

    decisions: tuple[Decision, ...]
    leftovers: tuple[dict[str, Any], ...]
    freed_bytes: int
    """Bytes of the versions that may go, or went."""
    dry_run: bool

    @property
    def removable(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if not d.reasons)

    def to_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "freed_bytes": self.freed_bytes,
            "removed": [asdict(d) for d in self.removable],
            "kept": [asdict(d) for d in self.decisions if d.reasons],
            "leftovers": list(self.leftovers),
        }


def collect_garbage(
    registry: Registry, *, keep_days: float = DEFAULT_KEEP_DAYS, dry_run: bool = True, who: str = "", why: str = ""
) -> Collection:
    """Find what nothing needs any more and, unless ``dry_run``, remove it.

    First one transaction records that the versions are gone, then their files vanish, each version by one rename.
    Temporary files, leases that ran out and files without a version are removed when they are older than a day.

    Raises:
        InputError: ``keep_days`` is negative.
        NotFoundError: no registry.
        ArtifactError: a lease or a manifest cannot be read, so that it is not known what is needed.
    """
    if not keep_days >= 0:
        raise InputError(f"--keep-days must be 0 or more, got {keep_days}.")
    since = (datetime.now(UTC) - timedelta(days=keep_days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with operation("gc"):
        if dry_run:
            decisions = registry.read(lambda connection: _decide(connection, registry, since))
            return _result(registry, decisions, dry_run=True)

        def mark(connection: Connection) -> list[Decision]:
            found = _decide(connection, registry, since)
            for decision in found:
                if not decision.reasons:
                    name, _, number = decision.ref.rpartition(":")
                    ledger.new_event(
                        connection,
                        action=ledger.COLLECT,
                        name=name,
                        number=int(number),
                        digest=decision.digest,
                        who=who,
                        why=why or f"nothing needed it for {keep_days:g} days",
                    )
            return found

        registry.require()
        decisions = registry.write(mark)
        gone = frozenset(d.digest for d in decisions if not d.reasons)
        result = _result(registry, decisions, dry_run=False)
        for digest in sorted(gone):
            registry.database.write(partial(_bury, registry=registry, digest=digest), step="sweep-commit")
        registry.database.write(partial(_sweep, registry=registry), step="sweep-commit")
        return result


def _decide(connection: Connection, registry: Registry, since: str) -> list[Decision]:
    """Return every version that is there with what speaks for it."""
    rows = lookup.rows(connection, registry.store)
    reasons: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for version, _ in rows:
        here = (version.name, version.number)
        reasons[here] += [f"@{alias} points here" for alias in version.aliases]
        if version.created_at >= since:
            reasons[here].append("registered within the retention")
    query = select(events.c.name, events.c.number, events.c.from_number, events.c.alias).where(
        events.c.alias.is_not(None), events.c.at >= since
    )
    for name, number, from_number, alias in connection.execute(query):
        for moved in {number, from_number} - {None}:
            reasons[name, moved].append(f"@{alias} moved here or away within the retention")
    try:
        holders = held_digests(registry.store)
    except ValueError as error:
        raise ArtifactError(
            f"{registry.store.url}: {error}, so it is not known what a server holds. Nothing was removed. Remove the "
            "file when that server is gone, then run `cilseg gc` again."
        ) from error
    for version, _ in rows:
        if version.digest in holders:
            reasons[version.name, version.number].append(f"held by {holders[version.digest]}")
    parents = {row["parent"] for v, row in rows if reasons[v.name, v.number]}
    for version, _ in rows:
        if version.digest in parents and not reasons[version.name, version.number]:
            reasons[version.name, version.number].append("the gate compares a kept version with it")
    return [
        Decision(v.ref, v.digest, row["size_bytes"], tuple(dict.fromkeys(reasons[v.name, v.number]))) for v, row in rows
    ]


def _bury(connection: Connection, *, registry: Registry, digest: str) -> None:
    """Remove a version's files under the write lock, unless the same content was registered meanwhile."""
    if digest not in lookup.live_digests(connection):
        registry.store.remove_version(digest)


def _sweep(connection: Connection, *, registry: Registry) -> None:
    """Remove old leftovers under the write lock, so that nobody comes to need one of them meanwhile."""
    store = registry.store
    for leftover in store.leftovers(lookup.live_digests(connection)):
        if leftover.age_s > STALE_S:
            leftover.remove()
    for lease_id in expired_leases(store):
        store.remove_lease(lease_id)


def _result(registry: Registry, decisions: list[Decision], *, dry_run: bool) -> Collection:
    kept = {d.digest for d in decisions if d.reasons}
    sizes = {d.digest: d.size_bytes or 0 for d in decisions if not d.reasons and d.digest not in kept}
    live = registry.database.read(lookup.live_digests)
    leftovers = [
        {"place": item.place, "what": item.what, "age_hours": round(item.age_s / 3600, 1)}
        for item in registry.store.leftovers(live | frozenset(sizes))
        if item.age_s > STALE_S
    ]
    return Collection(tuple(decisions), tuple(leftovers), sum(sizes.values()), dry_run)
