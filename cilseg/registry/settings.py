"""What the database records about the registry itself: where the artifacts are."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from cilseg.errors import ConflictError, InputError, NotFoundError
from cilseg.registry.database import Database
from cilseg.registry.ledger import top_sequence
from cilseg.registry.schema import meta

_STORE = "store"


def recorded_store(connection: Connection) -> str | None:
    """Return the folder or URL of the artifacts, ``None`` where the database names none."""
    return connection.execute(select(meta.c.value).where(meta.c.key == _STORE)).scalar_one_or_none()


def record_store(connection: Connection, store: str) -> None:
    """Record where the artifacts are.

    Raises:
        ConflictError: versions are registered whose files are in another store.
    """
    place = store if "://" in store else str(Path(store).expanduser().absolute())
    known = recorded_store(connection)
    if known == place:
        return
    if known is not None and top_sequence(connection):
        raise ConflictError(
            f"The artifacts of this registry are in {known}. To move them, copy everything to {place} first, then set "
            f"CILSEG_STORE={place} where the registry is used."
        )
    connection.execute(delete(meta).where(meta.c.key == _STORE))
    connection.execute(insert(meta).values(key=_STORE, value=place))


def require_store(database: Database) -> None:
    """Check that a shared database names a store.

    Raises:
        InputError: it does not.
    """
    try:
        if database.read(recorded_store) is not None:
            return
    except NotFoundError:
        pass
    raise InputError(
        f"{database.where} needs a place for the artifacts: {database.migrate_command()} --store FOLDER|URL, for "
        "example --store s3://bucket/registry."
    )
