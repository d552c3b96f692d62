"""Where the files of a registry are: what every store can do, and the folder store.

``<root>/versions/<64 hex>/`` holds a bundle's files, ``<root>/tmp/`` what is being written, ``<root>/leases/`` what
running servers hold. A version's folder is moved into place whole; one without a row in the database is invisible and
used again by a later registration of the same content.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from cilseg.bundle import CHECKPOINT, MANIFEST, Manifest, hash_file, read_manifest, verify_files
from cilseg.errors import ArtifactError, FaultCollector, InputError
from cilseg.registry import attachments, event_log
from cilseg.registry.files import (
    FolderSource,
    Progress,
    Source,
    held,
    move_folder,
    receive,
    remove,
    replace_file,
    sync_folder,
    write_bytes,
)
from cilseg.registry.records import Attachment, Version

ATTACHMENTS = attachments.ATTACHMENTS
DATABASE = "registry.db"
EVENT_LOG = "events.jsonl"
STALE_S = 24 * 3600.0
"""Age at which what a killed process left behind is removed."""
_OWN = frozenset({"versions", "runs", "tmp", "leases", EVENT_LOG})


@dataclass(frozen=True)
class Leftover:
    """Something in the store that nothing refers to: ``what`` says so to a reader, ``remove`` takes it away."""

    place: str
    what: str
    age_s: float
    remove: Callable[[], None]


class Store(Protocol):
    """Files of versions, attachments, the event log and leases."""

    url: str
    work: Path
    """A local folder for what is being made: training runs, temporary files."""

    def check_root(self) -> None: ...
    def make_root(self) -> None: ...

    def local(self, digest: str) -> Path:
        """Return a local folder with the version's files and attachments, which may be copied there first."""

    def place_of(self, digest: str) -> str:
        """Return where the version is in the store, for messages."""

    def fault_of(self, digest: str) -> str | None:
        """Return what a glance finds wrong with a version, for lists; ``None`` where a glance costs a transfer."""

    def manifest(self, digest: str) -> Manifest: ...
    def source(self, digest: str) -> Source: ...
    def put(self, source: Source, manifest: Manifest, *, progress: Progress | None = None) -> None: ...
    def has(self, manifest: Manifest) -> bool: ...
    def verify(self, version: Version, *, deep: bool = False) -> None: ...
    def digests(self) -> dict[str, float]:
        """Return the digests of all whole versions with their age in seconds."""

    def remove_version(self, digest: str) -> None: ...
    def stage_file(self, source: Path | bytes) -> tuple[Path, str]: ...
    def stage_from(self, source: Source, name: str, sha256: str, *, progress: Progress | None = None) -> Path: ...
    def attachment_source(self, version: Version) -> Source: ...
    def publish(self, version: Version, entry: dict[str, Any], *, staged: Path) -> Attachment: ...
    def attachments(self, version: Version) -> dict[str, Attachment]: ...
    def attachment(self, version: Version, file_name: str) -> Attachment: ...
    def last_sequence(self) -> int: ...
    def append_events(self, rows: Iterable[Mapping[str, Any]]) -> None: ...
    def read_events(self) -> list[dict[str, Any]]: ...
    def write_lease(self, lease_id: str, data: bytes) -> None: ...
    def read_leases(self) -> dict[str, bytes]: ...
    def remove_lease(self, lease_id: str) -> None: ...
    def leftovers(self, live: frozenset[str]) -> list[Leftover]: ...
    def strangers(self, digest: str, names: set[str]) -> list[str]:
        """Return the faults of files beside a version's own ``names`` that are no attachments either."""
        ...

    def log_place(self) -> str: ...


class FolderStore:
    """Artifacts in a folder. Every file is hashed on its way in, fsynced, and made read-only."""

    def __init__(self, root: Path) -> None:
        self.root = self.work = root
        self.url = str(root)
        self._log = root / EVENT_LOG
        self._versions = f"{root / 'versions'}{os.sep}"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def check_root(self) -> None:
        """Check that the registry's folder is one, or can become one; nothing is written.

        Raises:
            InputError: it is there and holds other things, or may not be written.
        """
        if self.root.is_dir() and os.access(self.root, os.R_OK | os.X_OK):
            here = {p.name for p in self.root.iterdir()}
            foreign = sorted(name for name in here - _OWN if not name.startswith("."))
            if foreign and DATABASE not in here:  # there when another process has just made the registry
                raise InputError(
                    f"{self.root} is no registry and not empty (it holds {', '.join(foreign[:5])}). Give an empty or "
                    "a new folder with --registry."
                )
        nearest = next(p for p in (self.root, *self.root.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(
                f"Registry {self.root}: {nearest} cannot be written by this user. Give another folder with --registry, "
                "or change its permissions."
            )

    def make_root(self) -> None:
        """Make the store's folder.

        Raises:
            InputError: as :meth:`check_root`.
        """
        self.check_root()
        self.root.mkdir(parents=True, exist_ok=True)
        sync_folder(self.root.parent)

    # Versions

    def folder_of(self, digest: str) -> Path:
        return self.root / "versions" / digest.removeprefix("sha256:")

    def local(self, digest: str) -> Path:
        return self.folder_of(digest)

    def place_of(self, digest: str) -> str:
        return f"{self._versions}{digest.removeprefix('sha256:')}"  # text: lists ask for thousands

    def fault_of(self, digest: str) -> str | None:
        place = self.place_of(digest)
        there = os.access(f"{place}/{MANIFEST}", os.F_OK)
        return None if there else f"{place} is no bundle: {MANIFEST} is missing."

    def manifest(self, digest: str) -> Manifest:
        folder = self.folder_of(digest)
        if not folder.is_dir():
            raise ArtifactError(
                f"The directory {folder} of version {digest[:19]}... is missing. Put it back from a backup, or "
                "register the bundle again: the same content gets the same version."
            )
        return read_manifest(folder)

    def source(self, digest: str) -> Source:
        return FolderSource(self.folder_of(digest))

    def put(self, source: Source, manifest: Manifest, *, progress: Progress | None = None) -> None:
        """Copy a bundle into the store; files already there and whole are kept, damaged ones replaced.

        A copy that was killed is gone on with: its folder in ``tmp/`` is named by the digest.

        Raises:
            ArtifactError: files are missing, truncated, changed, or badly named; all are listed.
            OSError: the disk is full; the store is as it was.
        """
        check_listing(manifest)
        for leftover in self._stale():
            leftover.remove()
        target = self.folder_of(manifest.digest)
        target.parent.mkdir(exist_ok=True)
        with self._staging(manifest.digest) as staged:
            wanted = _wanting(target, manifest)
            _fill(source, manifest, wanted, staged, progress)
            if not target.exists() and move_folder(staged, target):
                return
            for name in wanted:  # attachments stay
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                replace_file(staged / name, target / name)
            remove(staged)

    def has(self, manifest: Manifest) -> bool:
        """Return whether the version's files are there; their hashes are not compared."""
        folder = self.folder_of(manifest.digest)
        return all((folder / name).is_file() for name in (MANIFEST, *manifest.files))

    def verify(self, version: Version, *, deep: bool = False) -> None:  # noqa: ARG002
        """Compare every file of a version with its hash.

        Raises:
            ArtifactError: files are missing or changed; all are named.
        """
        verify_files(self.folder_of(version.digest), version.manifest)

    def digests(self) -> dict[str, float]:
        now = time.time()
        found = {}
        for path in sorted((self.root / "versions").glob("*")):
            with _gone_is_fine():
                found[f"sha256:{path.name}"] = now - path.stat().st_mtime
        return found

    def remove_version(self, digest: str) -> None:
        """Make a version vanish by one rename, then free its space."""
        folder = self.folder_of(digest)
        if not folder.exists():
            return
        self.tmp.mkdir(exist_ok=True)
        grave = Path(tempfile.mkdtemp(dir=self.tmp, prefix="gone-"))
        move_folder(folder, grave / "version")
        remove(grave)

    # Attachments

    def stage_file(self, source: Path | bytes) -> tuple[Path, str]:
        """Copy ``source`` to a temporary file in the store; return its path and ``sha256:...``.

        Raises:
            OSError: the source cannot be read or the disk is full; nothing is left behind.
        """
        self.tmp.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.tmp)
        os.close(handle)
        target = Path(name)
        try:
            if isinstance(source, bytes):
                return target, write_bytes(source, target)
            return target, receive(FolderSource(source.parent), source.name, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def stage_from(self, source: Source, name: str, sha256: str, *, progress: Progress | None = None) -> Path:
        """Copy a file whose hash is known to a temporary file, going on where a killed copy ended.

        Raises:
            ArtifactError: it is missing or has another hash.
        """
        self.tmp.mkdir(exist_ok=True)
        target = self.tmp / f"at-{sha256.removeprefix('sha256:')[:32]}"
        with held(target.with_suffix(".lock")):
            try:
                actual = receive(source, name, target, expected=sha256, progress=progress)
            except FileNotFoundError as error:
                raise ArtifactError(f"{name} is missing where it should be copied from ({error.filename}).") from error
            except OSError:
                target.unlink(missing_ok=True)
                raise
            if actual != sha256:
                target.unlink()
                raise ArtifactError(
                    f"{name} is damaged where it was copied from: it has {actual[:19]}..., expected {sha256[:19]}.... "
                    "Make it again there with `cilseg export` or `cilseg validate`."
                )
        return target

    def attachment_source(self, version: Version) -> Source:
        return FolderSource(self.folder_of(version.digest) / ATTACHMENTS)

    def publish(self, version: Version, entry: dict[str, Any], *, staged: Path) -> Attachment:
        """Move a staged file into place with its sidecar; the caller holds the write lock."""
        return attachments.publish(
            self.folder_of(version.digest), entry, staged=staged, stage=lambda data: self.stage_file(data)[0]
        )

    def attachments(self, version: Version) -> dict[str, Attachment]:
        return attachments.list_attachments(self.folder_of(version.digest))

    def attachment(self, version: Version, file_name: str) -> Attachment:
        return attachments.find_attachment(
            self.folder_of(version.digest), file_name, ref=version.ref, digest=version.digest
        )

    # Events

    def log_place(self) -> str:
        return str(self._log)

    def last_sequence(self) -> int:
        return event_log.last_sequence(self._log)

    def append_events(self, rows: Iterable[Mapping[str, Any]]) -> None:
        event_log.append(self._log, rows)

    def read_events(self) -> list[dict[str, Any]]:
        return event_log.read_events(self._log)

    # Leases

    def write_lease(self, lease_id: str, data: bytes) -> None:
        folder = self.root / "leases"
        folder.mkdir(exist_ok=True)
        staged, _ = self.stage_file(data)
        replace_file(staged, folder / f"{lease_id}.json")

    def read_leases(self) -> dict[str, bytes]:
        found = {}
        for path in sorted((self.root / "leases").glob("*.json")):
            with _gone_is_fine():
                found[path.stem] = path.read_bytes()
        return found

    def remove_lease(self, lease_id: str) -> None:
        remove(self.root / "leases" / f"{lease_id}.json")

    # Leftovers

    def leftovers(self, live: frozenset[str]) -> list[Leftover]:
        """Return what nothing refers to: temporary files and version folders that are not ``live``."""
        found = self._temporary()
        for digest, age in self.digests().items():
            if digest not in live:
                what = "a version's folder without a row in the database"
                place = self.folder_of(digest)
                found.append(Leftover(str(place), what, age, lambda digest=digest: self.remove_version(digest)))  # type: ignore[misc]
        return found

    def strangers(self, digest: str, names: set[str]) -> list[str]:
        folder = self.folder_of(digest)
        here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        beside = f"{ATTACHMENTS}/"
        return [f"{name} is no file of it" for name in sorted(here - names) if not name.startswith(beside)]

    def _temporary(self) -> list[Leftover]:
        now = time.time()
        found = []
        for path in sorted(self.tmp.glob("*")):
            with _gone_is_fine():
                age = now - max(p.stat().st_mtime for p in (path, *path.rglob("*")))
                found.append(
                    Leftover(str(path), "left by a process that was killed", age, lambda path=path: remove(path))  # type: ignore[misc]
                )
        return found

    def _stale(self) -> list[Leftover]:
        return [leftover for leftover in self._temporary() if leftover.age_s > STALE_S]

    @contextmanager
    def _staging(self, digest: str) -> Iterator[Path]:
        """Give the folder in ``tmp/`` that a version is assembled in; one process at a time for one digest.

        It is emptied when an error ends the copy, and stays when the process is killed.
        """
        self.tmp.mkdir(exist_ok=True)
        name = f"in-{digest.removeprefix('sha256:')[:32]}"
        with held(self.tmp / f"{name}.lock"):
            staged = self.tmp / name
            staged.mkdir(exist_ok=True)
            try:
                yield staged
            except Exception:
                shutil.rmtree(staged, ignore_errors=True)
                raise


def _wanting(target: Path, manifest: Manifest) -> list[str]:
    """Return the names of the files that ``target`` lacks or holds damaged, the manifest last."""
    names = [
        name
        for name, expected in manifest.files.items()
        if not (target / name).is_file() or hash_file(target / name) != expected
    ]
    path = target / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest_bytes(manifest):
        names.append(MANIFEST)
    return names


def _fill(source: Source, manifest: Manifest, names: list[str], staged: Path, progress: Progress | None) -> None:
    faults = FaultCollector("Bundle" if not isinstance(source, FolderSource) else f"Bundle {source.folder}")
    for name in names:
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == MANIFEST:
            write_bytes(manifest_bytes(manifest), _writable(target))
            continue
        expected = manifest.files[name]
        try:
            actual = receive(source, name, target, expected=expected, progress=progress)
        except FileNotFoundError:
            faults.add(f"{name} is missing")
            continue
        if actual != expected:
            faults.add(f"{name} has {actual[:19]}..., expected {expected[:19]}... ({target.stat().st_size} bytes)")
    faults.raise_if_any(
        "The files are truncated or changed. Copy the bundle again from where it came, or retrain.",
        error=ArtifactError,
    )
    for folder in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
        sync_folder(folder)


def _writable(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return ``manifest.json`` as it is stored."""
    text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False)
    return (text + "\n").encode()


def check_listing(manifest: Manifest) -> None:
    """Refuse file names that leave the bundle's folder.

    Raises:
        ArtifactError: a name is not allowed, or there are no weights.
    """
    faults = FaultCollector("Manifest")
    for name in manifest.files:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name
        if not inside or path.parts[0] in (MANIFEST, ATTACHMENTS):
            faults.add(f"{name!r} is no file name of a bundle")
    if CHECKPOINT not in manifest.files:
        faults.add(f"{CHECKPOINT} is not listed")
    faults.raise_if_any("Write the bundle again with cilseg.bundle.write_manifest().", error=ArtifactError)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """Pass over what another process removed meanwhile."""
    try:
        yield
    except FileNotFoundError:
        return


def open_store(url: str | Path, *, progress: Progress | None = None) -> Store:
    """Return the store at ``url``: a folder, or any fsspec URL.

    Raises:
        InputError: the URL cannot be read.
        MissingDependencyError: the package for its scheme is not installed.
    """
    if isinstance(url, str) and "://" in url:
        from cilseg.registry.remote import RemoteStore

        return RemoteStore(url, progress=progress)
    return FolderStore(Path(url).expanduser().absolute())
