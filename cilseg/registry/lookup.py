"""Finding versions on a database connection; every miss says what there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from cilseg.errors import ConflictError, InputError, NotFoundError, did_you_mean
from cilseg.registry import ledger
from cilseg.registry.records import Version
from cilseg.registry.references import FORMS, Reference, parse_reference
from cilseg.registry.schema import aliases, events
from cilseg.registry.schema import versions as table
from cilseg.registry.store import Store

_SHOWN = 10


def names(connection: Connection) -> list[str]:
    """Return the names of all models, sorted."""
    return list(connection.execute(select(table.c.name).distinct().order_by(table.c.name)).scalars())


def require_name(connection: Connection, name: str) -> None:
    """Raise NotFoundError where no version of ``name`` exists."""
    known = names(connection)
    if name not in known:
        raise NotFoundError(
            f"There is no model {name!r} in the registry.{did_you_mean(name, known)} "
            f"It holds: {', '.join(known) or 'nothing yet'}."
        )


def only_name(connection: Connection) -> str:
    """Return the name of the one model; raise where there is none, or several to choose from."""
    known = names(connection)
    if not known:
        raise NotFoundError("The registry holds no model yet. Run `cilseg train` or `cilseg demo` first.")
    if len(known) > 1:
        raise InputError(f"The registry holds several models ({', '.join(known)}); name one of them: {FORMS}.")
    return known[0]


def versions(
    connection: Connection,
    store: Store,
    *,
    name: str | None = None,
    where: ColumnElement[bool] | None = None,
) -> list[Version]:
    """Return the versions that are there with their aliases, sorted by name and number."""
    return [version for version, _ in rows(connection, store, name=name, where=where)]


def rows(
    connection: Connection,
    store: Store,
    *,
    name: str | None = None,
    where: ColumnElement[bool] | None = None,
    collected: bool = False,
) -> list[tuple[Version, Mapping[str, Any]]]:
    """Return versions, each with its row in the database; with ``collected`` also those whose files gc removed."""
    pointers = select(events.c.name, events.c.number, aliases.c.alias).join_from(
        aliases, events, aliases.c.sequence == events.c.sequence
    )
    query = select(table).order_by(table.c.name, table.c.number)
    if name is not None:
        query = query.where(table.c.name == name)
        pointers = pointers.where(events.c.name == name)
    if where is not None:
        query = query.where(where)
    if not collected:
        query = query.where(table.c.collected_at.is_(None))
    at: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for row in connection.execute(pointers.order_by(aliases.c.alias)):
        at[row.name, row.number].append(row.alias)
    return [
        (
            Version(
                name=row["name"],
                number=row["number"],
                digest=row["digest"],
                created_at=row["created_at"],
                aliases=tuple(at.get((row["name"], row["number"]), ())),
                store=store,
            ),
            row,
        )
        for row in map(dict, connection.execute(query).mappings())
    ]


def live_digests(connection: Connection) -> frozenset[str]:
    """Return the digests of all versions whose files should be in the store."""
    return frozenset(connection.execute(select(table.c.digest).where(table.c.collected_at.is_(None))).scalars())


def refs_by_digest(connection: Connection) -> dict[str, list[str]]:
    """Return ``name:number`` of every version ever registered, by digest."""
    query = select(table.c.digest, table.c.name, table.c.number).order_by(table.c.name, table.c.number)
    refs: dict[str, list[str]] = {}
    for digest, name, number in connection.execute(query):
        refs.setdefault(digest, []).append(f"{name}:{number}")
    return refs


def number_of(connection: Connection, name: str, digest: str) -> int | None:
    """Return the number that ``digest`` has under ``name``, if any."""
    query = select(table.c.number).where(table.c.name == name, table.c.digest == digest)
    return connection.execute(query).scalar_one_or_none()


def is_collected(connection: Connection, name: str, number: int) -> bool:
    """Return whether gc removed the files of ``name:number``."""
    query = select(table.c.collected_at).where(table.c.name == name, table.c.number == number)
    return connection.execute(query).scalar_one_or_none() is not None


def newest_number(connection: Connection, name: str, *, collected: bool = True) -> int:
    """Return the highest number of ``name``, 0 where there is none; ``collected`` versions count, unless told not to.

    Numbers are never given twice, so a new version's follows the highest of all.
    """
    query = select(func.coalesce(func.max(table.c.number), 0)).where(table.c.name == name)
    if not collected:
        query = query.where(table.c.collected_at.is_(None))
    return int(connection.execute(query).scalar_one())


def require_digest(connection: Connection, version: Version) -> None:
    """Raise NotFoundError where the files of ``version`` were collected since it was looked up."""
    query = select(table.c.number).where(table.c.digest == version.digest, table.c.collected_at.is_(None))
    if connection.execute(query).first() is None:
        numbered(connection, version.store, name=version.name, number=version.number)


def numbered(connection: Connection, store: Store, *, name: str, number: int) -> Version:
    """Return ``name:number``, or raise NotFoundError with the numbers there are."""
    found = versions(connection, store, name=name, where=table.c.number == number)
    if found:
        return found[0]
    require_name(connection, name)
    here = (table.c.name == name) & (table.c.number == number)
    gone = connection.execute(select(table.c.collected_at).where(here)).scalar_one_or_none()
    if gone is not None:
        raise NotFoundError(
            f"The files of {name}:{number} were removed by `cilseg gc` ({gone[:10]}). Register or pull the same bundle "
            "again, and it is there under its old number."
        )
    live = (table.c.name == name) & table.c.collected_at.is_(None)
    known = list(connection.execute(select(table.c.number).where(live).order_by(table.c.number)).scalars())
    shown = ", ".join(str(n) for n in known[-_SHOWN:])
    raise NotFoundError(
        f"There is no version {name}:{number}. Versions of {name}: {'..., ' if len(known) > _SHOWN else ''}"
        f"{shown or 'none left'}."
    )


def require_alias(connection: Connection, name: str, alias: str) -> dict[str, Any]:
    """Return the event that ``name@alias`` stands on, or raise NotFoundError with the aliases there are."""
    head = ledger.head(connection, name, alias)
    if head is None:
        query = select(aliases.c.alias).where(aliases.c.name == name).order_by(aliases.c.alias)
        known = list(connection.execute(query).scalars())
        raise NotFoundError(
            f"{name} has no alias {alias!r}.{did_you_mean(alias, known)} It has: {', '.join(known) or 'none'}. "
            f"Set it with `cilseg promote {name}:N --alias {alias}`."
        )
    return head


def resolve(connection: Connection, store: Store, *, ref: str | None) -> Version:
    """Return the version that ``ref`` names; see :meth:`cilseg.registry.Registry.resolve`."""
    parsed = parse_reference(ref) if ref is not None else Reference()
    if parsed.digest_prefix is not None:
        return _by_digest(connection, store, prefix=parsed.digest_prefix)
    name = parsed.name if parsed.name is not None else only_name(connection)
    require_name(connection, name)
    if parsed.number is not None:
        return numbered(connection, store, name=name, number=parsed.number)
    if parsed.alias is not None:
        number = require_alias(connection, name, parsed.alias)["number"]
    else:
        served = ledger.head(connection, name, "production")
        number = served["number"] if served is not None else newest_number(connection, name, collected=False)
    return numbered(connection, store, name=name, number=number)


def check_expected(connection: Connection, store: Store, *, name: str, alias: str, expect: str) -> None:
    """Raise ConflictError where ``name@alias`` is not at ``expect``: a reference, a number, or ``none``."""
    head = ledger.head(connection, name, alias)
    if expect.strip() == "none":
        wanted = None
    elif expect.strip().isdecimal():
        wanted = int(expect)
    else:
        version = resolve(connection, store, ref=expect)
        if version.name != name:
            raise InputError(f"--expect names {version.ref}, but {name}@{alias} is to be moved.")
        wanted = version.number
    found = head["number"] if head is not None else None
    if found != wanted:
        raise ConflictError(
            f"{name}@{alias} was expected at {_place(name, wanted)} and is at {_place(name, found)}: somebody moved it "
            f"meanwhile. Look at `cilseg show {name}`, then decide again."
        )


def _by_digest(connection: Connection, store: Store, *, prefix: str) -> Version:
    found = versions(connection, store, where=table.c.digest.startswith(f"sha256:{prefix}"))
    if not found:
        raise NotFoundError(f"No version has a digest that starts with sha256:{prefix}. See `cilseg list`.")
    if len({v.digest for v in found}) > 1:
        matches = ", ".join(f"{v.ref} ({v.digest[:23]}...)" for v in found[:_SHOWN])
        raise InputError(f"Several digests start with sha256:{prefix}: {matches}. Give more digits.")
    return found[0]


def _place(name: str, number: int | None) -> str:
    return f"{name}:{number}" if number is not None else "nothing"
