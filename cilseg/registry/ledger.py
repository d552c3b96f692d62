"""Events on a database connection: appended once, never changed; versions and aliases are applied from them.

The same :func:`record` serves live writes and the rebuild, so a rebuilt database equals the lost one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from cilseg.bundle import Manifest
from cilseg.registry.records import AliasEvent
from cilseg.registry.schema import aliases, events, versions

REGISTER, COLLECT = "register", "collect"


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def top_sequence(connection: Connection) -> int:
    """Return the sequence of the newest event, 0 when there is none."""
    return int(connection.execute(select(func.coalesce(func.max(events.c.sequence), 0))).scalar_one())


def events_after(connection: Connection, sequence: int) -> list[dict[str, Any]]:
    """Return the events that follow ``sequence``, in order."""
    query = select(events).where(events.c.sequence > sequence).order_by(events.c.sequence)
    return [dict(row) for row in connection.execute(query).mappings()]


def record(connection: Connection, row: Mapping[str, Any], *, summary: Mapping[str, Any] | None = None) -> None:
    """Append one event and apply it: a move where it has an alias; else a version that comes, comes back or goes.

    ``summary`` is what lists show of a version that comes: see :func:`summary_of`.
    """
    connection.execute(insert(events).values(**row))
    if row["alias"] is not None:
        here = (aliases.c.name == row["name"]) & (aliases.c.alias == row["alias"])
        connection.execute(delete(aliases).where(here))
        connection.execute(insert(aliases).values(name=row["name"], alias=row["alias"], sequence=row["sequence"]))
        return
    this = (versions.c.name == row["name"]) & (versions.c.number == row["number"])
    if row["action"] == COLLECT:
        connection.execute(update(versions).where(this).values(collected_at=row["at"]))
        return
    back = connection.execute(update(versions).where(this).values(collected_at=None, **(summary or {})))
    if back.rowcount == 0:
        connection.execute(
            insert(versions).values(
                name=row["name"],
                number=row["number"],
                digest=row["digest"],
                created_at=row["at"],
                **(summary or {}),
            )
        )


def summary_of(manifest: Manifest, *, size_bytes: int | None, gate: str | None) -> dict[str, Any]:
    """Return the columns of ``versions`` that repeat the manifest and the gate's verdict."""
    return {
        "method": manifest.method,
        "parent": manifest.parent,
        "classes": json.dumps([c.name for c in manifest.class_set.entries], ensure_ascii=False),
        "size_bytes": size_bytes,
        "gate": gate,
    }


def note_gate(connection: Connection, digest: str, verdict: str | None) -> None:
    """Let lists show the gate's verdict on the versions with this content."""
    connection.execute(update(versions).where(versions.c.digest == digest).values(gate=verdict))


def new_event(
    connection: Connection,
    *,
    action: str,
    name: str,
    number: int,
    digest: str,
    summary: Mapping[str, Any] | None = None,
    **fields: Any,
) -> AliasEvent:
    """Record the next event and return it; the caller holds the write lock, so sequences have no gaps."""
    row: dict[str, Any] = {
        "sequence": top_sequence(connection) + 1,
        "action": action,
        "name": name,
        "number": number,
        "digest": digest,
        "alias": None,
        "from_number": None,
        "who": "",
        "at": now(),
        "why": "",
        "forced": False,
        "class_change": False,
        "gate_report": None,
        "undo": None,
    }
    row.update(fields)
    record(connection, row, summary=summary)
    return alias_event(row)


def head(connection: Connection, name: str, alias: str) -> dict[str, Any] | None:
    """Return the event that put ``name@alias`` where it is, or ``None``."""
    query = (
        select(events)
        .join(aliases, aliases.c.sequence == events.c.sequence)
        .where(aliases.c.name == name, aliases.c.alias == alias)
    )
    row = connection.execute(query).mappings().one_or_none()
    return dict(row) if row is not None else None


def event_by_sequence(connection: Connection, sequence: int) -> dict[str, Any]:
    return dict(connection.execute(select(events).where(events.c.sequence == sequence)).mappings().one())


def alias_history(connection: Connection, name: str, alias: str) -> list[AliasEvent]:
    """Return every move of ``name@alias``, oldest first."""
    query = select(events).where(events.c.name == name, events.c.alias == alias).order_by(events.c.sequence)
    return [alias_event(dict(row)) for row in connection.execute(query).mappings()]


def all_moves(connection: Connection, *, name: str | None = None) -> list[AliasEvent]:
    """Return the moves of all aliases (of ``name``), oldest first."""
    query = select(events).where(events.c.alias.is_not(None)).order_by(events.c.sequence)
    if name is not None:
        query = query.where(events.c.name == name)
    return [alias_event(dict(row)) for row in connection.execute(query).mappings()]


def ancestors(connection: Connection, parent: str | None) -> list[str]:
    """Return the line of parents, nearest first, as ``name:number``, or the digest of one that is not here."""
    line: list[str] = []
    digest = parent
    while digest is not None:
        query = select(versions).where(versions.c.digest == digest).order_by(versions.c.name, versions.c.number)
        row = connection.execute(query.limit(1)).mappings().first()
        line.append(digest if row is None else f"{row['name']}:{row['number']}")
        digest = None if row is None else row["parent"]
    return line


def alias_event(row: Mapping[str, Any]) -> AliasEvent:
    return AliasEvent(
        name=row["name"],
        alias=row["alias"] or "",
        from_number=row["from_number"],
        to_number=row["number"],
        who=row["who"],
        when=row["at"],
        why=row["why"],
        action=row["action"],
        forced=bool(row["forced"]),
        gate_report=row["gate_report"],
        class_change=bool(row["class_change"]),
        sequence=row["sequence"],
    )
