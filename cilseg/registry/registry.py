"""The registry: what there is, what each alias points to, and how that came about.

Order of writes, so that a process killed at any point leaves the registry as it was or complete: (1) files are copied
to ``tmp/``, hashed and fsynced, and moved into ``versions/`` by one rename; (2) one database transaction makes the
version visible or moves the alias; (3) the committed events are appended to ``events.jsonl``. What (3) missed is
appended by the next process that uses the registry.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cilseg.bundle import Manifest, read_manifest
from cilseg.errors import ArtifactError, CilsegError, GateError, InputError, NotFoundError
from cilseg.registry import attachments as attached
from cilseg.registry import event_log
from cilseg.registry.policy import UNGATED_ALIASES, judge
from cilseg.registry.records import AliasEvent, Attachment, Version
from cilseg.registry.references import check_name
from cilseg.registry.store import DATABASE, EVENT_LOG, FolderStore

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cilseg.registry.database import Database

T = TypeVar("T")
PRODUCTION = "production"
DEFAULT_FOLDER = "cilseg-registry"
VARIABLE = "CILSEG_REGISTRY"
_logger = logging.getLogger(__name__)


class Registry:
    """A registry in a folder: ``registry.db``, ``versions/``, ``events.jsonl``, ``tmp/``.

    Example:
        >>> registry = Registry.open("cilseg-registry")  # doctest: +SKIP
        >>> registry.resolve("animals@production").ref  # doctest: +SKIP
        'animals:3'
    """

    def __init__(self, root: Path, *, lock_timeout_s: float = 30.0) -> None:
        self.root = root
        self._lock_timeout_s = lock_timeout_s
        self._store = FolderStore(root)
        self._log = root / EVENT_LOG
        self._caught_up = False

    @classmethod
    def open(cls, url: str | Path | None = None) -> Registry:
        """Return the registry at ``url``, by ``CILSEG_REGISTRY``, or ``./cilseg-registry``.

        Nothing is read or written yet: the first write makes the folder, a read of a missing one raises.

        Raises:
            InputError: ``url`` is not a folder.
        """
        where = url if url is not None else os.environ.get(VARIABLE) or DEFAULT_FOLDER
        if isinstance(where, str) and "://" in where:
            raise InputError(f"Registry {where!r}: this version of cilseg keeps a registry in a folder; give its path.")
        root = Path(where).expanduser()
        if root.exists() and not root.is_dir():
            raise InputError(f"Registry {root} is a file. Give a folder, with --registry or {VARIABLE}.")
        return cls(root.absolute())

    @classmethod
    def rebuild(cls, url: str | Path | None = None) -> int:
        """Make the database again from ``events.jsonl``; return the number of events. Nothing else may use it then.

        The old database, if any, is kept as ``registry.db.before-rebuild``.

        Raises:
            ArtifactError: the event log is damaged.
            NotFoundError: there is no event log.
        """
        from cilseg.registry.rebuild import rebuild_database

        return rebuild_database(cls.open(url).root)

    # Reading

    def names(self) -> list[str]:
        """Return the names of the models, sorted."""
        from cilseg.registry import lookup

        return self._read(lookup.names)

    def versions(self, name: str | None = None) -> list[Version]:
        """Return all versions (of ``name``), sorted by name and number.

        Raises:
            NotFoundError: no registry, or no model of that name.
        """
        from cilseg.registry import lookup

        def work(connection: Connection) -> list[Version]:
            if name is not None:
                lookup.require_name(connection, name)
            return lookup.versions(connection, self._store, name=name)

        return self._read(work)

    def resolve(self, ref: str | None = None) -> Version:
        """Return the version that ``ref`` names.

        ``name:3``, ``name@alias``, ``sha256:abcd``; ``name`` is ``name@production`` where that is set, else its newest
        version; ``None`` stands for the one model of the registry.

        Raises:
            InputError: no such form, or several versions or models fit.
            NotFoundError: no such registry, name, number, alias or digest; the message says what there is.
        """
        from cilseg.registry import lookup

        return self._read(lambda connection: lookup.resolve(connection, self._store, ref=ref))

    def history(self, name: str, *, alias: str = PRODUCTION) -> list[AliasEvent]:
        """Return every move of ``name@alias``, oldest first; empty where it was never set.

        Raises:
            NotFoundError: no registry, or no model of that name.
        """
        from cilseg.registry import ledger, lookup

        def work(connection: Connection) -> list[AliasEvent]:
            lookup.require_name(connection, name)
            return ledger.alias_history(connection, name, check_name(alias, what="Alias"))

        return self._read(work)

    # Writing

    def check_target(self, name: str) -> None:
        """Check, before hours of work, that a version of ``name`` can be registered here; nothing is written.

        Raises:
            InputError: the name is not allowed; the folder holds other things or may not be written.
            ArtifactError: the database is missing or older than the event log.
        """
        check_name(name)
        self._store.check_root()
        if self._database.exists() or event_log.last_sequence(self._log):
            self._require_or_empty()

    def register(self, name: str, bundle_dir: Path, *, who: str | None = None, alias: str | None = None) -> Version:
        """Copy a bundle into the store and make it the next version of ``name``; point ``alias`` at it if given.

        The same content again returns the version it already has. The gate holds for ``alias`` as in :meth:`promote`.

        Raises:
            InputError: the name or alias is not allowed.
            NotFoundError: ``bundle_dir`` holds no manifest.
            ArtifactError: files of the bundle are missing, truncated or changed.
            GateError: ``alias`` is served from and the version was not judged.
            ConflictError: the database stayed locked, or an id would get another name under ``alias``.
            OSError: the disk is full; the registry is as it was.
        """
        from cilseg.registry import ledger, lookup, moves

        check_name(name)
        manifest = read_manifest(bundle_dir)
        if alias is not None:
            check_name(alias, what="Alias")
            self._check_early(name, manifest, alias)
        self._make_folder()
        self._store.put(bundle_dir, manifest)
        by = who or _user()

        def work(connection: Connection) -> Version:
            number = lookup.number_of(connection, name, manifest.digest)
            if number is None:
                number = lookup.newest_number(connection, name) + 1
                ledger.new_event(
                    connection, action="register", name=name, number=number, digest=manifest.digest, who=by
                )
            version = lookup.numbered(connection, self._store, name=name, number=number)
            if alias is not None:
                moves.move(connection, self._store, version=version, alias=alias, action="register", who=by)
            return lookup.numbered(connection, self._store, name=name, number=number)

        return self._write(work)

    def promote(
        self,
        ref: str | None,
        *,
        alias: str = PRODUCTION,
        who: str | None = None,
        why: str = "",
        gate_report: str | None = None,
        force: bool = False,
        class_change: bool = False,
        expect: str | None = None,
    ) -> AliasEvent:
        """Point ``alias`` at the version, in one transaction, and return the event.

        Where the alias is there already nothing is written, and the earlier event comes back with ``moved`` false.
        ``expect`` is what the alias must point at now: a reference, a number, or ``none``. The alias ``candidate`` is
        not gated, since nothing is served from it.

        Raises:
            GateError: the version has a parent and no PROMOTE verdict, and ``force`` is not set.
            InputError: ``force`` without ``why``; a reference or alias that is not allowed.
            NotFoundError: no such version.
            ConflictError: the alias is not at ``expect``; an id would get another name without ``class_change``; the
                database stayed locked.
            ArtifactError: files of the version are damaged in the store.
        """
        from cilseg.registry import lookup, moves

        check_name(alias, what="Alias")
        if force and not why.strip():
            raise InputError("A forced promotion needs a reason, which stays in the history: add --reason TEXT.")

        def work(connection: Connection) -> AliasEvent:
            version = lookup.resolve(connection, self._store, ref=ref)
            if expect is not None:
                lookup.check_expected(connection, self._store, name=version.name, alias=alias, expect=expect)
            return moves.move(
                connection,
                self._store,
                version=version,
                alias=alias,
                action="promote",
                who=who or _user(),
                why=why,
                gate_report=gate_report,
                force=force,
                class_change=class_change,
            )

        self._require()
        return self._write(work)

    def rollback(
        self,
        name: str | None,
        *,
        alias: str = PRODUCTION,
        who: str | None = None,
        why: str = "",
        class_change: bool = False,
    ) -> AliasEvent:
        """Point ``alias`` back at what it pointed to before its last move; again, one move further back.

        The history grows by one event and is never shortened. No gate is asked: the version has been served before.

        Raises:
            NotFoundError: no such model, or the alias was never set.
            ConflictError: there is nothing before; an id would get another name without ``class_change``.
            ArtifactError: files of the earlier version are damaged in the store.
        """
        from cilseg.registry import moves

        check_name(alias, what="Alias")
        self._require()
        return self._write(
            lambda connection: moves.rollback(
                connection,
                self._store,
                name=name,
                alias=alias,
                who=who or _user(),
                why=why,
                class_change=class_change,
            )
        )

    # Attachments

    def attach(
        self,
        version: Version,
        file_name: str,
        source: Path | bytes,
        *,
        kind: str,
        metadata: dict[str, Any] | None = None,
    ) -> Attachment:
        """Store a file made for ``version``, with its hash and a sidecar; one of the same name is replaced.

        Raises:
            InputError: the file name is not allowed.
            ArtifactError: the version's directory is missing or its manifest was changed.
            OSError: the source cannot be read or the disk is full; the attachments are as they were.
        """
        _ = version.manifest  # raises where the version is not whole
        attached.check_file_name(version, file_name)
        staged, sha256 = self._store.stage_file(source)
        try:
            return self._database.write(
                lambda _: attached.publish(
                    version,
                    file_name,
                    staged=staged,
                    sha256=sha256,
                    kind=kind,
                    metadata=dict(metadata or {}),
                    stage=lambda data: self._store.stage_file(data)[0],
                )
            )
        finally:
            staged.unlink(missing_ok=True)

    def attachments(self, version: Version) -> dict[str, Attachment]:
        """Return the attachments of ``version`` by file name; hashes are not compared."""
        return attached.list_attachments(version)

    def attachment(self, version: Version, file_name: str) -> Attachment:
        """Return one attachment, its file compared with its hash.

        Raises:
            NotFoundError: there is none of that name.
            ArtifactError: the file is missing or changed.
        """
        return attached.find_attachment(version, file_name)

    # Plumbing

    def _check_early(self, name: str, manifest: Manifest, alias: str) -> None:
        """Refuse a gated alias before anything is copied."""
        if alias in UNGATED_ALIASES or manifest.parent is None:
            return
        known = Version(name, 0, manifest.digest, self._store.path_of(manifest.digest), "")
        if not known.path.is_dir() or judge(known)[0] is not None:
            raise GateError(
                f"A version with a parent cannot be registered as {name}@{alias} before the gate has judged it. "
                "Register it without an alias, run `cilseg validate`, then `cilseg promote`."
            )

    @cached_property
    def _database(self) -> Database:
        from cilseg.registry.database import Database

        return Database(self.root / DATABASE, lock_timeout_s=self._lock_timeout_s)

    def _read(self, work: Callable[[Connection], T]) -> T:
        self._require()
        return self._database.read(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        result = self._database.write(work)
        self._append_events()
        return result

    def _require(self) -> None:
        """Check, once, that there is a registry, and append to the event log what a killed process could not."""
        from cilseg.registry import ledger
        from cilseg.registry.database import missing_registry, rebuild_command

        logged = event_log.last_sequence(self._log)
        if not self._database.exists():
            if logged:
                raise ArtifactError(
                    f"{self._database.path} is missing, but {self._log} knows {logged} events. Restore the file, or "
                    f"rebuild it: {rebuild_command(self.root)}"
                )
            raise missing_registry(self.root)
        if self._caught_up:
            return
        committed = self._database.read(ledger.top_sequence)
        if committed < logged:
            raise ArtifactError(
                f"{self._log} knows {logged} events, {self._database.path} only {committed}: the database is older "
                f"than the store. While nothing else uses the registry, rebuild it: {rebuild_command(self.root)}"
            )
        if committed > logged:
            self._append_events()
        self._caught_up = True

    def _append_events(self) -> None:
        """Append committed events to the log. A failure is only logged: the next process appends them."""
        from cilseg.registry import ledger

        def work(connection: Connection) -> None:
            missing = ledger.events_after(connection, event_log.last_sequence(self._log))
            if missing:
                event_log.append(self._log, missing)

        try:
            self._database.write(work)
        except (OSError, CilsegError) as error:
            _logger.warning("events.jsonl is behind the database and is completed on next use: %s", error)

    def _make_folder(self) -> None:
        """Make the registry's folder; refuse one that holds other things."""
        if self._database.exists() or event_log.last_sequence(self._log):
            self._require_or_empty()
            return
        self._store.make_root()

    def _require_or_empty(self) -> None:
        try:
            self._require()
        except NotFoundError:
            return  # killed between making the file and its tables; the first write makes them


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
