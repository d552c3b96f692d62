"""Making the database again from the event log when it was lost or damaged."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from cilseg.errors import ArtifactError, CilsegError, NotFoundError
from cilseg.registry import ledger
from cilseg.registry.database import Database
from cilseg.registry.files import replace_file, sync_folder
from cilseg.registry.killpoints import operation, point
from cilseg.registry.migrate import upgrade
from cilseg.registry.policy import read_gate
from cilseg.registry.records import Version
from cilseg.registry.schema import metadata
from cilseg.registry.settings import record_store
from cilseg.registry.sqlite import SqliteDatabase
from cilseg.registry.store import DATABASE, Store, open_store

if TYPE_CHECKING:
    from cilseg.registry.registry import Registry

_logger = logging.getLogger(__name__)
_SUFFIXES = ("", "-wal", "-shm")


def rebuild_database(registry: Registry) -> int:
    """Replay the event log into a new database and put it in place; return the number of events.

    Events that the old database knows and the log does not are taken over first, where it can still be read.

    Raises:
        NotFoundError: there is no event log.
        ArtifactError: the event log is damaged.
    """
    with operation("rebuild"):
        store = _store_of(registry)
        old = registry.database
        _append_unlogged(old, store)
        rows = store.read_events()
        if not rows:
            raise NotFoundError(
                f"{store.log_place()} is missing or empty: there is nothing to rebuild a database from. Where the "
                "artifacts are elsewhere, name the place with --store."
            )
        place = None if store.url == str(registry.address.folder) else store.url
        if isinstance(old, SqliteDatabase):
            _replace_file(old, rows, store, place)
        else:
            old.write(lambda connection: _replace_tables(connection, rows, store, place), unchecked=True)
    return len(rows)


def _replace_file(old: SqliteDatabase, rows: list[dict[str, Any]], store: Store, place: str | None) -> None:
    root = old.path.parent
    tmp = root / "tmp"
    tmp.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tmp) as folder:
        new = SqliteDatabase(Path(folder) / DATABASE)
        new.write(lambda connection: _replay(connection, rows, store, place))
        # The last connection has closed and folded the write-ahead log into the one file.
        handle = os.open(new.path, os.O_RDONLY)
        point("fsync")
        os.fsync(handle)
        os.close(handle)
        for suffix in reversed(_SUFFIXES):
            part = root / f"{DATABASE}{suffix}"
            if part.exists():
                point("rename")
                part.replace(root / f"{DATABASE}.before-rebuild{suffix}")
        replace_file(new.path, old.path)
        sync_folder(root)


def _replace_tables(connection: Connection, rows: list[dict[str, Any]], store: Store, place: str | None) -> None:
    """Make the tables of a shared database again, all in the one transaction."""
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    connection.execute(text("DROP FUNCTION IF EXISTS events_are_append_only()"))
    upgrade(connection)
    _replay(connection, rows, store, place)


def _replay(connection: Connection, rows: list[dict[str, Any]], store: Store, place: str | None) -> None:
    for row in rows:
        summary = None
        if row["alias"] is None and row["action"] == ledger.REGISTER:
            summary = summary_in_store(store, row["name"], row["number"], row["digest"])
        ledger.record(connection, row, summary=summary)
    if place is not None:
        record_store(connection, place)


def summary_in_store(store: Store, name: str, number: int, digest: str) -> dict[str, Any] | None:
    """Return what the store says about a version, for lists; ``None`` where its manifest cannot be read."""
    version = Version(name, number, digest, "", store=store)
    try:
        manifest = version.manifest
        source = store.source(digest)
        size_bytes = sum(source.size(file) for file in manifest.files)
    except (CilsegError, OSError) as error:
        _logger.warning("%s cannot be read in the store: %s", version.ref, error)
        return None
    try:
        gate = read_gate(version)[0]
    except ArtifactError:
        gate = None
    return ledger.summary_of(manifest, size_bytes=size_bytes, gate=gate)


def _store_of(registry: Registry) -> Store:
    try:
        return registry.store
    except CilsegError:
        # The database cannot be asked where the artifacts are.
        place = registry.address.store or registry.address.folder
        if place is None:
            raise
        return open_store(place)


def _append_unlogged(old: Database, store: Store) -> None:
    if not old.exists():
        return
    try:
        rows = old.read(lambda connection: ledger.events_after(connection, store.last_sequence()))
    except CilsegError as error:
        _logger.warning("The old database cannot be read (%s); only logged events are rebuilt.", error)
        return
    if rows:
        store.append_events(rows)
