"""Transactions on the registry's database: one writer at a time, bounded waiting, and errors a user can read."""

from __future__ import annotations

import os
import random
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from cilseg.errors import ArtifactError, NotFoundError
from cilseg.registry.address import Address
from cilseg.registry.killpoints import point
from cilseg.registry.migrate import current_revision, upgrade
from cilseg.registry.schema import HEAD, REVISIONS

T = TypeVar("T")
LOCK_TIMEOUT_S = 60.0


def missing_registry(where: str) -> NotFoundError:
    """Return the error for reading a registry that does not exist."""
    return NotFoundError(
        f"There is no registry at {where}. Run `cilseg demo` or `cilseg train` to make one, or name another with "
        "--registry FOLDER or the variable CILSEG_REGISTRY."
    )


def rebuild_command(where: str) -> str:
    """Return the shell command that rebuilds the database of the registry at ``where``."""
    return f"cilseg fsck --rebuild --registry {shlex.quote(where)}"


class Database(ABC):
    """Work is a function of a connection, run in one transaction and rolled back if it raises.

    An object may be shared by threads and survives a fork.
    """

    shared: bool
    """Used from several machines: never made or upgraded unasked."""

    def __init__(self, where: str, *, lock_timeout_s: float) -> None:
        self.where = where
        self._lock_timeout_s = lock_timeout_s
        self._checked = False
        self._engine_of: tuple[int, Engine] | None = None

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there may be a registry; false only where there certainly is none."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what must be there before the tables are made."""

    @abstractmethod
    def lock(self, connection: Connection) -> None:
        """Wait until this transaction is the only one that writes."""

    @abstractmethod
    def make_engine(self) -> Engine: ...

    @abstractmethod
    def is_busy(self, error: DBAPIError) -> bool:
        """Return whether the same transaction may succeed when it is run again."""

    @abstractmethod
    def explained(self, error: DBAPIError) -> Exception:
        """Return the error to raise in place of the driver's."""

    @abstractmethod
    def check_integrity(self) -> list[str]:
        """Return what the database engine itself finds wrong."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on one consistent state.

        Raises:
            NotFoundError: there is no registry yet.
            ConflictError: it stayed locked.
            ArtifactError: it is damaged, from a newer cilseg, or shared and from an older one.
        """
        if not self.exists():
            raise missing_registry(self.where)
        if not self._checked:
            self._check()
        return self._run(work, write=False)

    def write(self, work: Callable[[Connection], T], *, step: str = "commit", unchecked: bool = False) -> T:
        """Run ``work`` as the only writer; makes the database first where there is none and it is not shared.

        ``step`` names the kill point before the commit; ``unchecked`` is for work that makes the tables itself.

        Raises:
            ConflictError: another writer held the lock longer than the timeout.
            ArtifactError: as :meth:`read`.
        """
        if not self._checked and not unchecked:
            self._check(make=True)
        return self._run(work, write=True, step=step)

    def migrate(self) -> tuple[str | None, str]:
        """Make or upgrade the tables; return the revisions before and after.

        Raises:
            ArtifactError: the database is from a newer cilseg.
        """
        self.prepare()

        def work(connection: Connection) -> str | None:
            found = current_revision(connection)
            self._refuse_unknown(found)
            if found != HEAD:
                upgrade(connection)
            return found

        before = self._run(work, write=True, step="migrate-commit")
        self._checked = True
        return before, HEAD

    def _check(self, *, make: bool = False) -> None:
        if make and not self.shared and not self.exists():
            self.prepare()
        found = self._run(current_revision, write=False)
        self._refuse_unknown(found)
        if found is None and not (make and not self.shared):
            raise self.empty()
        if found != HEAD:
            if self.shared:
                raise ArtifactError(
                    f"{self.where} has registry schema {found}, this cilseg works on {HEAD}. A shared database is "
                    f"not upgraded unasked: when every user can update cilseg, run `{self.migrate_command()}`."
                )
            self.migrate()
        self._checked = True

    def empty(self) -> NotFoundError:
        """Return the error for a database without the registry's tables."""
        if not self.shared:
            return missing_registry(self.where)
        return NotFoundError(
            f"{self.where} holds no registry. A shared database is not changed unasked: check the URL, or make the "
            f"tables once with `{self.migrate_command()} --store FOLDER|URL`."
        )

    def migrate_command(self) -> str:
        return f"cilseg migrate --registry {shlex.quote(self.where)}"

    def _refuse_unknown(self, found: str | None) -> None:
        if found is not None and found not in REVISIONS:
            raise ArtifactError(
                f"{self.where} has registry schema {found}, this cilseg knows {HEAD} and older. Nothing was changed. "
                "Update cilseg: pip install --upgrade cilseg."
            )

    @property
    def _engine(self) -> Engine:
        """The engine of this process: connections do not survive a fork."""
        if self._engine_of is None or self._engine_of[0] != os.getpid():
            if self._engine_of is not None:
                self._engine_of[1].dispose(close=False)
            self._engine_of = (os.getpid(), self.make_engine())
        return self._engine_of[1]

    def _run(self, work: Callable[[Connection], T], *, write: bool, step: str = "commit") -> T:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                with self._engine.connect() as connection:
                    bound = connection.execution_options(cilseg_write=write)
                    with bound.begin():
                        if write:
                            self.lock(bound)
                        result = work(bound)
                        if write:
                            point(step)
                    if write:
                        point(f"{step}-done")
                    return result
            except DBAPIError as error:
                if not self.is_busy(error) or time.monotonic() >= deadline:
                    raise self.explained(error) from error
            time.sleep(random.uniform(0.002, 0.02))


def open_database(address: Address, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Database:
    """Return the database of ``address``; nothing is read or written yet."""
    if address.folder is not None:
        from cilseg.registry.sqlite import SqliteDatabase
        from cilseg.registry.store import DATABASE

        return SqliteDatabase(address.folder / DATABASE, lock_timeout_s=lock_timeout_s)
    from cilseg.registry.postgres import PostgresDatabase

    return PostgresDatabase(address.database_url or "", lock_timeout_s=lock_timeout_s)
