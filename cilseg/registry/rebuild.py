"""Making the database again from ``events.jsonl`` when it was lost or damaged."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from sqlalchemy import Connection

from cilseg.bundle import fsync_directory
from cilseg.errors import CilsegError, NotFoundError
from cilseg.registry import event_log, ledger
from cilseg.registry.database import Database
from cilseg.registry.store import DATABASE, EVENT_LOG, FolderStore

_logger = logging.getLogger(__name__)
_SUFFIXES = ("", "-wal", "-shm")


def rebuild_database(root: Path) -> int:
    """Replay the event log into a new database and put it in place; return the number of events.

    Events that the old database knows and the log does not are taken over first, where it can still be read.

    Raises:
        NotFoundError: there is no event log.
        ArtifactError: the event log is damaged.
    """
    log = root / EVENT_LOG
    old = Database(root / DATABASE)
    _append_unlogged(old, log)
    rows = event_log.read_events(log)
    if not rows:
        raise NotFoundError(f"{log} is missing or empty: there is nothing to rebuild a database from.")
    store = FolderStore(root)
    for row in rows:
        if row["alias"] is None and not (store.path_of(row["digest"]) / "manifest.json").is_file():
            _logger.warning("%s:%s: its directory is missing from the store", row["name"], row["number"])
    store.tmp.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.tmp) as folder:
        new = Database(Path(folder) / DATABASE)

        def replay(connection: Connection) -> None:
            for row in rows:
                ledger.record(connection, row)

        new.write(replay)
        # The last connection has closed and folded the write-ahead log into the one file.
        handle = os.open(new.path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        for suffix in _SUFFIXES:
            part = root / f"{DATABASE}{suffix}"
            if part.exists():
                part.replace(root / f"{DATABASE}.before-rebuild{suffix}")
        new.path.replace(old.path)
        fsync_directory(root)
    return len(rows)


def _append_unlogged(old: Database, log: Path) -> None:
    if not old.exists():
        return
    try:
        rows = old.read(lambda connection: ledger.events_after(connection, event_log.last_sequence(log)))
        if rows:
            event_log.append(log, rows)
    except CilsegError as error:
        _logger.warning("The old database cannot be read (%s); only logged events are rebuilt.", error)
