"""Tables of the registry. Imports SQLAlchemy; imported only when a registry is used.

``events`` is the truth and append-only; ``versions`` and ``aliases`` follow from it and from the manifests in the store
(:mod:`cilseg.registry.ledger`). The tables are made and changed by the migrations in ``migrations/versions``; a test
compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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
)

REVISIONS = ("0001", "0002")
"""Every schema this cilseg knows, oldest first; the last is the one it works on."""
HEAD = REVISIONS[-1]

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

# method to gate repeat what the manifest and the gate report in the store say, so that lists need not read files.
# They are NULL where those could not be read. collected_at is set when gc removed the files.
versions = Table(
    "versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("created_at", String(40), nullable=False),
    Column("method", String(64), nullable=True),
    Column("parent", String(71), nullable=True),
    Column("classes", Text, nullable=True),
    Column("size_bytes", BigInteger, nullable=True),
    Column("gate", String(32), nullable=True),
    Column("collected_at", String(40), nullable=True),
    UniqueConstraint("name", "digest"),
)

# alias is NULL where the event made a version (register) or removed its files (collect); otherwise it moved that alias
# to `number`. undo is the event whose state a rollback goes back to: the events of an alias form a stack that is never
# popped.
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
