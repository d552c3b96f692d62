"""Events on a database connection: appended once, never changed; versions and aliases are applied from them.

The same :func:`record` serves live writes and the rebuild, so a rebuilt database equals the lost one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from cilseg.registry.records import AliasEvent
from cilseg.registry.schema import aliases, events, versions


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


def record(connection: Connection, row: Mapping[str, Any]) -> None:
    """Append one event and apply it: a new version where ``alias`` is ``None``, else a move of that alias."""
    connection.execute(insert(events).values(**row))
    if row["alias"] is None:
        connection.execute(
            insert(versions).values(name=row["name"], number=row["number"], digest=row["digest"], created_at=row["at"])
        )
        return
    here = (aliases.c.name == row["name"]) & (aliases.c.alias == row["alias"])
    connection.execute(delete(aliases).where(here))
    connection.execute(insert(aliases).values(name=row["name"], alias=row["alias"], sequence=row["sequence"]))


def new_event(connection: Connection, *, action: str, name: str, number: int, digest: str, **fields: Any) -> AliasEvent:
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
    record(connection, row)
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
