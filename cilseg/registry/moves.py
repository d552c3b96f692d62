"""Moves of an alias, on the connection of a write transaction: promotion and rollback."""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy import Connection

from cilseg.errors import ArtifactError, ConflictError, GateError, NotFoundError
from cilseg.registry import ledger, lookup, schema
from cilseg.registry.policy import UNGATED_ALIASES, judge, renamed_ids
from cilseg.registry.records import AliasEvent, Version
from cilseg.registry.store import Store

_logger = logging.getLogger(__name__)


class UnverifiedError(Exception):
    """The move would succeed, but nobody compared the version's files with their hashes yet.

    That can take long, so it is done outside the transaction, which is then run again.
    """

    def __init__(self, version: Version) -> None:
        super().__init__(version.ref)
        self.version = version


def move(
    connection: Connection,
    store: Store,
    *,
    version: Version,
    alias: str,
    action: str,
    who: str,
    why: str = "",
    gate_report: str | None = None,
    force: bool = False,
    class_change: bool = False,
    verified: frozenset[str],
) -> AliasEvent:
    """Point ``alias`` at ``version``; see :meth:`cilseg.registry.Registry.promote` for what is refused."""
    head = ledger.head(connection, version.name, alias)
    if head is not None and head["number"] == version.number:
        return replace(ledger.alias_event(head), moved=False)
    refusal, report = (None, None)
    if alias not in UNGATED_ALIASES:
        refusal, report = judge(version, parent=_parent_of(connection, store, version))
    if refusal is not None and not force:
        raise GateError(refusal)
    at = head["number"] if head is not None else None
    changed = _check_target(
        connection, store, version=version, at=at, alias=alias, class_change=class_change, verified=verified
    )
    return ledger.new_event(
        connection,
        action=action,
        name=version.name,
        number=version.number,
        digest=version.digest,
        alias=alias,
        from_number=at,
        who=who,
        why=why,
        forced=refusal is not None,
        class_change=changed,
        gate_report=gate_report or report,
        undo=head["sequence"] if head is not None else None,
    )


def rollback(
    connection: Connection,
    store: Store,
    *,
    name: str | None,
    alias: str,
    steps: int,
    who: str,
    why: str,
    class_change: bool,
    expect: str | None,
    verified: frozenset[str],
) -> AliasEvent:
    """Point ``alias`` back at what it pointed to before its last ``steps`` moves that were not themselves undone."""
    model = name if name is not None else lookup.only_name(connection)
    lookup.require_name(connection, model)
    if expect is not None:
        lookup.check_expected(connection, store, name=model, alias=alias, expect=expect)
    head = before = lookup.require_alias(connection, model, alias)
    for step in range(steps):
        if before["undo"] is None:
            raise ConflictError(
                f"{model}@{alias} is at {model}:{head['number']} and has no earlier version to go back to"
                f"{f' by {steps} moves, only by {step}' if step else ''}. Choose one from `cilseg history "
                f"{model}@{alias}` and run `cilseg promote {model}:N`."
            )
        before = ledger.event_by_sequence(connection, before["undo"])
    version = lookup.numbered(connection, store, name=model, number=before["number"])
    changed = _check_target(
        connection, store, version=version, at=head["number"], alias=alias, class_change=class_change, verified=verified
    )
    return ledger.new_event(
        connection,
        action="rollback",
        name=model,
        number=version.number,
        digest=version.digest,
        alias=alias,
        from_number=head["number"],
        who=who,
        why=why,
        class_change=changed,
        gate_report=before["gate_report"],
        undo=before["undo"],
    )


def _parent_of(connection: Connection, store: Store, version: Version) -> Version | None:
    """Return the parent whose terms a verdict has to meet; None where this registry does not know it."""
    digest = version.manifest.parent
    known = lookup.versions(connection, store, where=schema.versions.c.digest == digest) if digest is not None else []
    return known[0] if known else None


def _check_target(
    connection: Connection,
    store: Store,
    *,
    version: Version,
    at: int | None,
    alias: str,
    class_change: bool,
    verified: frozenset[str],
) -> bool:
    """Refuse unverified files and ids that change their names; return whether some do, with consent."""
    if version.digest not in verified:
        raise UnverifiedError(version)
    if at is None:
        return False
    current = lookup.numbered(connection, store, name=version.name, number=at)
    try:
        renamed = renamed_ids(current.manifest.class_set, version.manifest.class_set)
    except (ArtifactError, NotFoundError) as error:
        # A damaged version must not hold the alias: leaving it is allowed.
        _logger.warning("Class names were not compared: %s", error)
        return False
    if renamed and not class_change:
        raise ConflictError(
            f"Moving {version.name}@{alias} from {current.ref} to {version.ref} gives ids another name "
            f"({'; '.join(renamed)}), so readers of its masks would mistake one class for another. "
            "If they are ready for that, add --class-change."
        )
    return bool(renamed)
