"""Transactions on the registry's database: one writer at a time, bounded waiting, and errors a user can read."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cilseg.bundle import fsync_directory
from cilseg.errors import ArtifactError, CilsegError, ConflictError, InputError, NotFoundError
from cilseg.registry.schema import SCHEMA_VERSION, meta, metadata

T = TypeVar("T")
_BUSY_TIMEOUT_S = 5.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


def missing_registry(root: Path) -> NotFoundError:
    """Return the error for reading a registry that does not exist."""
    return NotFoundError(
        f"There is no registry at {root}. Run `cilseg demo` or `cilseg train` to make one, or name another with "
        "--registry FOLDER or the variable CILSEG_REGISTRY."
    )


class Database:
    """SQLite in WAL mode. Work is a function of a connection, run in one transaction and rolled back if it raises.

    Connections are opened per transaction, so an object may be shared by threads and survives a fork.
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = 30.0) -> None:
        self.path = path
        self._lock_timeout_s = lock_timeout_s
        self._checked = False

    def exists(self) -> bool:
        return self.path.is_file()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on one consistent state.

        Raises:
            NotFoundError: there is no database yet.
            ConflictError: it stayed locked.
            ArtifactError: it is damaged or from a newer cilseg.
        """
        if not self.exists():
            raise missing_registry(self.path.parent)

        def checked(connection: Connection) -> T:
            if not self._checked:
                if not inspect(connection).has_table(meta.name):
                    raise missing_registry(self.path.parent)
                self._check_schema(connection)
            return work(connection)

        return self._run("BEGIN", checked)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as the only writer; makes the database first where there is none.

        Raises:
            ConflictError: another writer held the lock longer than the timeout.
            ArtifactError: the database is damaged or from a newer cilseg.
        """
        if not self._checked:
            self._prepare()
        return self._run("BEGIN IMMEDIATE", work)

    def _prepare(self) -> None:
        if not self.exists():
            self.path.touch()
            fsync_directory(self.path.parent)

        def create(connection: Connection) -> None:
            if not inspect(connection).has_table(meta.name):
                metadata.create_all(connection)
                connection.execute(insert(meta).values(key="schema", value=str(SCHEMA_VERSION)))
            self._check_schema(connection)

        self._run(None, lambda connection: connection.exec_driver_sql("PRAGMA journal_mode=WAL").close())
        self._run("BEGIN IMMEDIATE", create)

    def _check_schema(self, connection: Connection) -> None:
        found = connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one_or_none()
        if found != str(SCHEMA_VERSION):
            raise ArtifactError(
                f"{self.path} has registry schema {found}, this cilseg knows {SCHEMA_VERSION}. Update cilseg, or use "
                "the cilseg that wrote it."
            )
        self._checked = True

    @cached_property
    def _engine(self) -> Engine:
        engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        def begin(connection: Connection) -> None:
            statement = connection.get_execution_options().get("begin")
            if statement:
                connection.exec_driver_sql(statement)

        event.listen(engine, "begin", begin)
        return engine

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

    def _run(self, begin: str | None, work: Callable[[Connection], T]) -> T:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                with self._engine.connect() as connection:
                    bound = connection.execution_options(begin=begin)
                    with bound.begin():
                        return work(bound)
            except DBAPIError as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise self._explained(error) from error
            time.sleep(random.uniform(0.002, 0.02))

    def _explained(self, error: DBAPIError) -> Exception:
        code = _code(error)
        if _is_busy(error):
            return ConflictError(
                f"Another process has been writing to {self.path} for more than {self._lock_timeout_s:g} s. Nothing "
                "was changed; try again when it is done."
            )
        if code == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if code in _DAMAGED:
            return ArtifactError(
                f"{self.path} is damaged ({error.orig}). Rebuild it from the store, while nothing else uses it: "
                f"{rebuild_command(self.path.parent)}"
            )
        if code in _REFUSED:
            return InputError(
                f"{self.path} cannot be opened for this ({error.orig}). Check the permissions of the folder and the "
                "file, or name another registry with --registry."
            )
        return CilsegError(f"{self.path}: {error.orig}. Nothing was changed.")


def rebuild_command(root: Path) -> str:
    """Return the shell command that rebuilds the database of the registry at ``root``."""
    return f"python -c \"from cilseg.registry import Registry; Registry.rebuild('{root}')\""


def _code(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", 0) or 0) & 0xFF


def _is_busy(error: DBAPIError) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
