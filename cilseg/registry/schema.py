"""Tables of the registry. Imports SQLAlchemy; imported only when a registry is used.

``events`` is the truth and append-only; ``versions`` and ``aliases`` follow from it (:mod:`cilseg.registry.ledger`).
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

SCHEMA_VERSION = 1

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("value", String(64), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("created_at", String(40), nullable=False),
    UniqueConstraint("name", "digest"),
)

# alias is NULL where the event made a version; otherwise it moved that alias to `number`.
# undo is the event whose state a rollback goes back to: the events of an alias form a stack that is never popped.
events = Table(
    "events",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("action", String(16), nullable=False),
    Column("name", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("alias", String(64), nullable=True),
    Column("from_number", Integer, nullable=True),
    Column("who", String(255), nullable=False),
    Column("at", String(40), nullable=False),
    Column("why", Text, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("class_change", Boolean, nullable=False),
    Column("gate_report", Text, nullable=True),
    Column("undo", Integer, ForeignKey("events.sequence"), nullable=True),
    Index("events_of_alias", "name", "alias", "sequence"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("sequence", Integer, ForeignKey("events.sequence"), nullable=False),
)

for _verb in ("UPDATE", "DELETE"):
    event.listen(
        events,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER events_no_{_verb.lower()} BEFORE {_verb} ON events "
            "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
