"""A shared database: PostgreSQL through psycopg 3."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from cilseg.errors import CilsegError, ConflictError, InputError, MissingDependencyError
from cilseg.registry.address import without_password
from cilseg.registry.database import LOCK_TIMEOUT_S, Database

_CONNECT_TIMEOUT_S = 10
_MORE_CONNECTIONS = 7
"""Connections beside the one that is kept, for threads that share a registry."""
_IDLE_TIMEOUT_S = 300
"""A writer that stands still for so long (its machine is gone, say) loses its transaction and the lock."""
_BUSY = ("40001", "40P01")  # serialization failure, deadlock
_LOCKED = "55P03"
_DENIED = "42501"
_NO_SPACE = ("53100",)


class PostgresDatabase(Database):
    """The tables are in the schema that the login's search path names first. Writers queue at an advisory lock."""

    shared = True

    def __init__(self, url: str, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        super().__init__(without_password(url), lock_timeout_s=lock_timeout_s)
        try:
            self._url = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise InputError(
                f"Registry {self.where!r} cannot be read as a URL ({error}). The form is "
                "postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
            ) from error

    def exists(self) -> bool:
        return True

    def prepare(self) -> None:
        """Nothing to do: the database is made by its administrator."""

    def lock(self, connection: Connection) -> None:
        milliseconds = max(1, int(1000 * self._lock_timeout_s))
        connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_TIMEOUT_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('cilseg ' || current_schema()))"))

    def make_engine(self) -> Engine:
        try:
            engine = create_engine(
                self._url,
                pool_size=1,
                max_overflow=_MORE_CONNECTIONS,
                pool_pre_ping=True,  # the server may have been started again since the last transaction
                connect_args={"connect_timeout": _CONNECT_TIMEOUT_S},
            )
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"A registry on PostgreSQL needs {error.name}: pip install 'cilseg[postgres]'"
            ) from error

        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get("cilseg_write") is False:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

        event.listen(engine, "begin", begin)
        return engine

    def is_busy(self, error: DBAPIError) -> bool:
        return _state(error) in _BUSY

    def explained(self, error: DBAPIError) -> Exception:
        state = _state(error)
        said = _first_line(error)
        if state == _LOCKED or state in _BUSY:
            return ConflictError(
                f"Another process has been writing to {self.where} for more than {self._lock_timeout_s:g} s. Nothing "
                "was changed; try again when it is done."
            )
        if state == _DENIED:
            return InputError(
                f"{self.where}: {said}. Nothing was changed. Use a login that may read and write the registry's tables."
            )
        if state in _NO_SPACE:
            return CilsegError(f"{self.where}: {said}. The server's disk is full; nothing was changed.")
        if state is None or state.startswith(("08", "28", "3D", "57P")):
            if error.connection_invalidated:
                return CilsegError(
                    f"The connection to {self.where} broke ({said}). Look at `cilseg history` to see whether the "
                    "last change was made, then repeat the command if it was not."
                )
            return InputError(
                f"Cannot connect to {self.where}: {said}. Check host, port, database and login in the URL, and that "
                "the server runs. Nothing was changed."
            )
        return CilsegError(f"{self.where}: {said}. Nothing was changed.")

    def check_integrity(self) -> list[str]:
        """Nothing: checking its files is the server's own matter."""
        return []


def _state(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _first_line(error: DBAPIError) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return (lines[0] if lines else type(error.orig).__name__).rstrip(".")
