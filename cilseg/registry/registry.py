"""The registry: what there is, what each alias points to, and how that came about.

Order of writes, so that a process killed at any point leaves the registry as it was or complete: (1) files are copied
to ``tmp/``, hashed and fsynced, and moved into ``versions/`` by one rename; (2) one database transaction makes the
version visible or moves the alias; (3) the committed events are appended to ``events.jsonl``. What (3) missed is
appended by the next process that uses the registry.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cilseg.bundle import Manifest, read_manifest
from cilseg.errors import ArtifactError, CilsegError, GateError, InputError, NotFoundError
from cilseg.registry import attachments as attached
from cilseg.registry.address import Address, parse_address
from cilseg.registry.files import FolderSource, Progress
from cilseg.registry.killpoints import operation
from cilseg.registry.policy import GATE_FILE, UNGATED_ALIASES, judge, verdict_in
from cilseg.registry.records import AliasEvent, Attachment, Version
from cilseg.registry.references import check_name
from cilseg.registry.store import Store, open_store

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cilseg.registry.database import Database

T = TypeVar("T")
PRODUCTION = "production"
_logger = logging.getLogger(__name__)


class Registry:
    """A registry: a database of versions, aliases and events, and a store that holds the files and the event log.

    Example:
        >>> registry = Registry.open("cilseg-registry")  # doctest: +SKIP
        >>> registry.resolve("animals@production").ref  # doctest: +SKIP
        'animals:3'
    """

    def __init__(self, address: Address, *, lock_timeout_s: float = 60.0, progress: Progress | None = None) -> None:
        self.address = address
        self._lock_timeout_s = lock_timeout_s
        self.progress = progress
        self._caught_up = False

    @classmethod
    def open(
        cls,
        url: str | Path | None = None,
        *,
        store: str | Path | None = None,
        lock_timeout_s: float = 60.0,
        progress: Progress | None = None,
    ) -> Registry:
        """Return the registry at ``url``, by ``CILSEG_REGISTRY``, or ``./cilseg-registry``.

        Nothing is read or written yet: the first write makes the folder, a read of a missing one raises.

        Args:
            url: a folder, or ``postgresql://USER@HOST/DATABASE``.
            store: folder or fsspec URL of the artifacts, where it is not the one that the database names.
            lock_timeout_s: how long a write waits for other writers.
            progress: called with file name, bytes done and bytes in all while files are copied.

        Raises:
            InputError: ``url`` has no known form.
        """
        return cls(parse_address(url, store=store), lock_timeout_s=lock_timeout_s, progress=progress)

    @classmethod
    def rebuild(cls, url: str | Path | None = None, *, store: str | Path | None = None) -> int:
        """Make the database again from the event log; return the number of events. Nothing else may use it then.

        An old SQLite database, if any, is kept as ``registry.db.before-rebuild``.

        Raises:
            ArtifactError: the event log is damaged.
            NotFoundError: there is no event log.
        """
        from cilseg.registry.rebuild import rebuild_database

        return rebuild_database(cls.open(url, store=store))

    @property
    def url(self) -> str:
        """What to give as ``--registry`` to get here again, without a password."""
        return self.address.url

    @property
    def root(self) -> Path:
        """A local folder for what belongs to no version, such as training runs; of a registry in a folder, that one."""
        return self.address.folder if self.address.folder is not None else self.store.work

    @cached_property
    def database(self) -> Database:
        """The database; for the modules of this package."""
        from cilseg.registry.database import open_database

        return open_database(self.address, lock_timeout_s=self._lock_timeout_s)

    @cached_property
    def store(self) -> Store:
        """The artifact store; for the modules of this package.

        Raises:
            InputError: a shared database names no store, and none is given.
        """
        chosen = self.address.store
        if chosen is None and self.database.exists():
            chosen = self._recorded_store()
        if chosen is None and self.address.folder is None:
            raise InputError(
                f"{self.url} does not say where its artifacts are. Record it once with "
                f"`{self.database.migrate_command()} --store FOLDER|URL`, or set CILSEG_STORE."
            )
        return open_store(chosen if chosen is not None else self.address.folder or "", progress=self.progress)

    def migrate(self, *, store: str | None = None) -> tuple[str | None, str]:
        """Make or upgrade the database's tables, and record where the artifacts are; return the revisions.

        The only way to make or change the tables of a shared database.

        Raises:
            ArtifactError: the database is from a newer cilseg.
            InputError: a shared database would have no store; ``store`` is another one than the recorded.
        """
        from cilseg.registry import settings

        chosen = store if store is not None else self.address.store
        with operation("migrate"):
            if self.address.folder is not None:
                self.address.folder.mkdir(parents=True, exist_ok=True)
            if chosen is not None:
                open_store(chosen).make_root()
            elif self.address.folder is None:
                settings.require_store(self.database)
            revisions = self.database.migrate()
            if chosen is not None:
                self.database.write(lambda connection: settings.record_store(connection, chosen))
        self.__dict__.pop("store", None)
        return revisions

    # Reading

    def names(self) -> list[str]:
        """Return the names of the models, sorted."""
        from cilseg.registry import lookup

        return self.read(lookup.names)

    def versions(self, name: str | None = None) -> list[Version]:
        """Return all versions (of ``name``), sorted by name and number.

        Raises:
            NotFoundError: no registry, or no model of that name.
        """
        from cilseg.registry import lookup

        def work(connection: Connection) -> list[Version]:
            if name is not None:
                lookup.require_name(connection, name)
            return lookup.versions(connection, self.store, name=name)

        return self.read(work)

    def resolve(self, ref: str | None = None) -> Version:
        """Return the version that ``ref`` names.

        ``name:3``, ``name@alias``, ``sha256:abcd``; ``name`` is ``name@production`` where that is set, else its newest
        version; ``None`` stands for the one model of the registry.

        Raises:
            InputError: no such form, or several versions or models fit.
            NotFoundError: no such registry, name, number, alias or digest; the message says what there is.
        """
        from cilseg.registry import lookup

        return self.read(lambda connection: lookup.resolve(connection, self.store, ref=ref))

    def history(self, name: str, *, alias: str = PRODUCTION) -> list[AliasEvent]:
        """Return every move of ``name@alias``, oldest first; empty where it was never set.

        Raises:
            NotFoundError: no registry, or no model of that name.
        """
        from cilseg.registry import ledger, lookup

        def work(connection: Connection) -> list[AliasEvent]:
            lookup.require_name(connection, name)
            return ledger.alias_history(connection, name, check_name(alias, what="Alias"))

        return self.read(work)

    # Writing

    def check_target(self, name: str) -> None:
        """Check, before hours of work, that a version of ``name`` can be registered here; nothing is written.

        Raises:
            InputError: the name is not allowed; the folder holds other things or may not be written.
            NotFoundError: a shared database holds no registry.
            ArtifactError: the database is missing or older than the event log.
            StoreError: the store does not answer.
        """
        check_name(name)
        self.store.check_root()
        if self.database.exists() or self.store.last_sequence():
            self._require_or_empty()

    def register(
        self, name: str, bundle_dir: Path, *, who: str | None = None, alias: str | None = None, why: str = ""
    ) -> Version:
        """Copy a bundle into the store and make it the next version of ``name``; point ``alias`` at it if given.

        The same content again returns the version it already has. The gate holds for ``alias`` as in :meth:`promote`.

        Raises:
            InputError: the name or alias is not allowed.
            NotFoundError: ``bundle_dir`` holds no manifest.
            ArtifactError: files of the bundle are missing, truncated or changed.
            GateError: ``alias`` is served from and the version was not judged.
            ConflictError: the database stayed locked, or an id would get another name under ``alias``.
            OSError: the disk is full; the registry is as it was.
            StoreError: a remote store cannot be written.
        """
        check_name(name)
        manifest = read_manifest(bundle_dir)
        from cilseg.registry import intake

        if alias is not None:
            check_name(alias, what="Alias")
            self._check_early(name, manifest, alias)
        with operation("register"):
            self.make()
            return intake.take_in(
                self,
                name,
                FolderSource(bundle_dir),
                manifest,
                who=who or user_name(),
                alias=alias,
                why=why,
                progress=self.progress,
            )

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

        def work(connection: Connection, verified: frozenset[str]) -> AliasEvent:
            version = lookup.resolve(connection, self.store, ref=ref)
            if expect is not None:
                lookup.check_expected(connection, self.store, name=version.name, alias=alias, expect=expect)
            return moves.move(
                connection,
                self.store,
                version=version,
                alias=alias,
                action="promote",
                who=who or user_name(),
                why=why,
                gate_report=gate_report,
                force=force,
                class_change=class_change,
                verified=verified,
            )

        with operation("promote"):
            return self._move(work)

    def rollback(
        self,
        name: str | None,
        *,
        alias: str = PRODUCTION,
        steps: int = 1,
        who: str | None = None,
        why: str = "",
        class_change: bool = False,
        expect: str | None = None,
    ) -> AliasEvent:
        """Point ``alias`` back at what it pointed to ``steps`` moves before; again, further back.

        The history grows by one event and is never shortened. No gate is asked: the version has been served before.
        ``expect`` is as in :meth:`promote`.

        Raises:
            InputError: ``steps`` is below 1.
            NotFoundError: no such model, the alias was never set, or the earlier version's files were collected.
            ConflictError: there is nothing before; the alias is not at ``expect``; an id would get another name
                without ``class_change``.
            ArtifactError: files of the earlier version are damaged in the store.
        """
        from cilseg.registry import moves

        check_name(alias, what="Alias")
        if steps < 1:
            raise InputError(f"A rollback goes back by 1 move or more, got {steps}.")
        with operation("rollback"):
            return self._move(
                lambda connection, verified: moves.rollback(
                    connection,
                    self.store,
                    name=name,
                    alias=alias,
                    steps=steps,
                    who=who or user_name(),
                    why=why,
                    class_change=class_change,
                    expect=expect,
                    verified=verified,
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
        from cilseg.registry import ledger, lookup

        _ = version.manifest  # raises where the version is not whole
        with operation("attach"):
            attached.check_file_name(file_name, self.store.attachments(version))
            staged, sha256 = self.store.stage_file(source)
            verdict = _verdict_in(staged) if file_name == GATE_FILE else None
            entry = attached.sidecar_entry(
                file_name,
                digest=version.digest,
                sha256=sha256,
                size_bytes=staged.stat().st_size,
                kind=kind,
                metadata=dict(metadata or {}),
            )

            def work(connection: Connection) -> Attachment:
                lookup.require_digest(connection, version)
                made = self.store.publish(version, entry, staged=staged)
                if file_name == GATE_FILE:
                    ledger.note_gate(connection, version.digest, verdict)
                return made

            try:
                return self.database.write(work)
            finally:
                staged.unlink(missing_ok=True)

    def attachments(self, version: Version) -> dict[str, Attachment]:
        """Return the attachments of ``version`` by file name; hashes are not compared.

        From a remote store their files are not copied: :meth:`attachment` does that.
        """
        return self.store.attachments(version)

    def attachment(self, version: Version, file_name: str) -> Attachment:
        """Return one attachment, its file compared with its hash.

        Raises:
            NotFoundError: there is none of that name.
            ArtifactError: the file is missing or changed.
        """
        return self.store.attachment(version, file_name)

    # Plumbing, for the modules of this package

    def make(self) -> None:
        """Make the registry where it is embedded and not there yet; check it where it is."""
        if self.address.folder is None or self.database.exists() or self.store.last_sequence():
            self._require_or_empty()
        elif self.address.store is not None:
            self.migrate()
        else:
            self.store.make_root()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on one consistent state of the database."""
        self.require()
        return self.database.read(work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as the only writer, then append its events to the log."""
        result = self.database.write(work)
        self._append_events()
        return result

    def require(self) -> None:
        """Check, once, that there is a registry, and append to the event log what a killed process could not.

        Raises:
            NotFoundError: there is none.
            ArtifactError: the database is missing or older than the event log.
        """
        from cilseg.registry import ledger
        from cilseg.registry.database import missing_registry, rebuild_command

        if self._caught_up and self.database.exists():
            return
        logged = self.store.last_sequence()
        if not self.database.exists():
            if logged:
                raise ArtifactError(
                    f"The database of {self.url} is missing, but {self.store.log_place()} knows {logged} events. "
                    f"Restore the file, or rebuild it: {rebuild_command(self.url)}"
                )
            raise missing_registry(self.url)
        committed = self.database.read(ledger.top_sequence)
        if committed < logged:
            raise ArtifactError(
                f"{self.store.log_place()} knows {logged} events, the database of {self.url} only {committed}: the "
                "database is older than the store. While nothing else uses the registry, rebuild it: "
                f"{rebuild_command(self.url)}"
            )
        if committed > logged:
            self._append_events()
        self._caught_up = True

    def _move(self, work: Callable[[Connection, frozenset[str]], AliasEvent]) -> AliasEvent:
        """Move an alias in one transaction, after comparing the target's files with their hashes outside of it."""
        from cilseg.registry.moves import UnverifiedError

        self.require()
        verified: frozenset[str] = frozenset()
        while True:
            try:
                if verified:
                    return self.write(lambda connection, known=verified: work(connection, known))  # type: ignore[misc]
                return self.database.read(lambda connection: work(connection, frozenset()))  # there already
            except UnverifiedError as found:
                self.store.verify(found.version)
                verified |= {found.version.digest}

    def _check_early(self, name: str, manifest: Manifest, alias: str) -> None:
        """Refuse a gated alias before anything is copied."""
        if alias in UNGATED_ALIASES or manifest.parent is None:
            return
        known = Version(name, 0, manifest.digest, "", store=self.store)
        if not self.store.has(manifest) or judge(known)[0] is not None:
            raise GateError(
                f"A version with a parent cannot be registered as {name}@{alias} before the gate has judged it. "
                "Register it without an alias, run `cilseg validate`, then `cilseg promote`."
            )

    def _recorded_store(self) -> str | None:
        from cilseg.registry.settings import recorded_store

        try:
            return self.database.read(recorded_store)
        except NotFoundError:
            if self.database.shared:
                raise
            return None  # killed between making the file and its tables

    def _append_events(self) -> None:
        """Append committed events to the log. A failure is only logged: the next process appends them."""
        from cilseg.registry import ledger

        def work(connection: Connection) -> None:
            missing = ledger.events_after(connection, self.store.last_sequence())
            if missing:
                self.store.append_events(missing)

        try:
            self.database.write(work, step="log-commit")
        except (OSError, CilsegError) as error:
            _logger.warning("The event log is behind the database and is completed on next use: %s", error)

    def _require_or_empty(self) -> None:
        try:
            self.require()
        except NotFoundError:
            if self.database.shared:
                raise
            return  # killed between making the file and its tables; the first write makes them


def _verdict_in(report: Path) -> str | None:
    try:
        return verdict_in(report.read_bytes())[:32]
    except (ValueError, KeyError, TypeError):
        return None


def user_name() -> str:
    """Return who runs this process, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
