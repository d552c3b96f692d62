"""The embedded database: SQLite in WAL mode, in the registry's folder."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cilseg.errors import ArtifactError, CilsegError, ConflictError, InputError
from cilseg.registry.database import LOCK_TIMEOUT_S, Database, rebuild_command
from cilseg.registry.files import sync_folder
from cilseg.registry.killpoints import point

_BUSY_TIMEOUT_S = 5.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


class SqliteDatabase(Database):
    """One file beside the artifacts. A writer takes the lock when its transaction begins; readers never wait."""

    shared = False

    def __init__(self, path: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        super().__init__(str(path.parent), lock_timeout_s=lock_timeout_s)
        self.path = path

    def exists(self) -> bool:
        return self.path.is_file()

    def prepare(self) -> None:
        if not self.exists():
            point("create")
            self.path.touch()
            sync_folder(self.path.parent)
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL").close()
        except DBAPIError as error:
            # A second process that makes it at the same time holds the lock for a moment: WAL is set by then.
            if not self.is_busy(error):
                raise self.explained(error) from error

    def lock(self, connection: Connection) -> None:
        """Nothing to do: the transaction began with BEGIN IMMEDIATE."""

    def make_engine(self) -> Engine:
        engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        def begin(connection: Connection) -> None:
            write = connection.get_execution_options().get("cilseg_write")
            if write is not None:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        event.listen(engine, "begin", begin)
        return engine

    def is_busy(self, error: DBAPIError) -> bool:
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def explained(self, error: DBAPIError) -> Exception:
        code = _code(error)
        if self.is_busy(error):
            return ConflictError(
                f"Another process has been writing to {self.path} for more than {self._lock_timeout_s:g} s. Nothing "
                "was changed; try again when it is done."
            )
        if code == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if code in _DAMAGED:
            return ArtifactError(
                f"{self.path} is damaged ({error.orig}). Rebuild it from the store, while nothing else uses it: "
                f"{rebuild_command(self.where)}"
            )
        if code in _REFUSED:
            return InputError(
                f"{self.path} cannot be opened for this ({error.orig}). Check the permissions of the folder and the "
                "file, or name another registry with --registry."
            )
        return CilsegError(f"{self.path}: {error.orig}. Nothing was changed.")

    def check_integrity(self) -> list[str]:
        try:
            with self._engine.connect() as connection:
                rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        except DBAPIError as error:
            return [str(self.explained(error))]
        return [f"{self.path}: {row}" for row in rows if row != "ok"]

    def _connect(self) -> sqlite3.Connection:
        wal = self.path.with_name(self.path.name + "-wal")
        read_only = not os.access(self.path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size)
        mode = "mode=ro&immutable=1" if read_only else "mode=rw"
        timeout_s = min(_BUSY_TIMEOUT_S, self._lock_timeout_s)
        # isolation_level None: the driver starts no transactions of its own.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection


def _code(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", 0) or 0) & 0xFF
