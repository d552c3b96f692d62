"""The folder store: one read-only directory per version, named by its digest, moved into place whole.

``<root>/versions/<64 hex>/`` holds the bundle's files, ``<root>/tmp/`` what is being written. A directory without a row
in the database is invisible and used again by a later registration of the same content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath

from cilseg.bundle import CHECKPOINT, MANIFEST, Manifest, fsync_directory, hash_file
from cilseg.errors import ArtifactError, FaultCollector, InputError

ATTACHMENTS = "attachments"
READ_ONLY = 0o444
DATABASE = "registry.db"
EVENT_LOG = "events.jsonl"
_OWN = frozenset({"versions", "runs", "tmp", EVENT_LOG})
_BLOCK_BYTES = 1 << 20
_STALE_S = 24 * 3600.0


class FolderStore:
    """Artifacts in a folder. Every file is hashed on its way in, fsynced, and made read-only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def check_root(self) -> None:
        """Check that the registry's folder is one, or can become one; nothing is written.

        Raises:
            InputError: it is there and holds other things, or may not be written.
        """
        if self.root.is_dir():
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
        """Make the registry's folder.

        Raises:
            InputError: as :meth:`check_root`.
        """
        self.check_root()
        self.root.mkdir(parents=True, exist_ok=True)
        fsync_directory(self.root.parent)

    def path_of(self, digest: str) -> Path:
        """Return the directory of ``digest`` (``sha256:...``), whether or not it exists."""
        return self.root / "versions" / digest.removeprefix("sha256:")

    def put(self, bundle_dir: Path, manifest: Manifest) -> Path:
        """Copy a bundle into the store and return its directory; files already there and whole are kept.

        Raises:
            ArtifactError: files are missing, truncated, changed, or badly named; all are listed.
            OSError: the disk is full; the store is as it was.
        """
        _check_listing(bundle_dir, manifest)
        self._clean_stale()
        target = self.path_of(manifest.digest)
        target.parent.mkdir(exist_ok=True)
        staged = self._copy(bundle_dir, manifest)
        try:
            if not _move_directory(staged, target):
                self._heal(staged, target, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return target

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
                return target, _write_hashed(source, target)
            return target, copy_hashed(source, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _copy(self, bundle_dir: Path, manifest: Manifest) -> Path:
        self.tmp.mkdir(exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=self.tmp))
        faults = FaultCollector(f"Bundle {bundle_dir}")
        try:
            staged.chmod(0o755)
            for name, expected in manifest.files.items():
                if not (bundle_dir / name).is_file():
                    faults.add(f"{name} is missing")
                    continue
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                actual = copy_hashed(bundle_dir / name, staged / name)
                if actual != expected:
                    size = (staged / name).stat().st_size
                    faults.add(f"{name} has {actual[:19]}..., expected {expected[:19]}... ({size} bytes)")
            faults.raise_if_any(
                "The files are truncated or changed. Copy the bundle again from where it came, or retrain.",
                error=ArtifactError,
            )
            text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
            _write_hashed(text.encode(), staged / MANIFEST)
            for directory in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
                fsync_directory(directory)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _heal(self, staged: Path, target: Path, manifest: Manifest) -> None:
        """Put back files of ``target`` that were damaged in the store; attachments stay."""
        for name, expected in manifest.files.items():
            if not (target / name).is_file() or hash_file(target / name) != expected:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                replace_file(staged / name, target / name)
        if not (target / MANIFEST).is_file() or hash_file(target / MANIFEST) != hash_file(staged / MANIFEST):
            replace_file(staged / MANIFEST, target / MANIFEST)

    def _clean_stale(self) -> None:
        """Remove what killed processes left in ``tmp`` more than a day ago."""
        if not self.tmp.is_dir():
            return
        for entry in self.tmp.iterdir():
            try:
                if time.time() - entry.stat().st_mtime > _STALE_S:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except FileNotFoundError:
                continue


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file in blocks, fsync it, make it read-only, and return ``sha256:...`` of what was written."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK_BYTES):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(READ_ONLY)
    return f"sha256:{digest.hexdigest()}"


def replace_file(staged: Path, target: Path) -> None:
    """Move a finished, fsynced file over ``target`` so that the move survives a power cut."""
    staged.replace(target)
    fsync_directory(target.parent)


def _write_hashed(data: bytes, target: Path) -> str:
    with target.open("wb") as writer:
        writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(READ_ONLY)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _move_directory(staged: Path, target: Path) -> bool:
    """Move ``staged`` to ``target``; return false when something is there already."""
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    fsync_directory(target.parent)
    return True


def _check_listing(bundle_dir: Path, manifest: Manifest) -> None:
    faults = FaultCollector(f"Manifest of {bundle_dir}")
    for name in manifest.files:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name
        if not inside or path.parts[0] in (MANIFEST, ATTACHMENTS):
            faults.add(f"{name!r} is no file name of a bundle")
    if CHECKPOINT not in manifest.files:
        faults.add(f"{CHECKPOINT} is not listed")
    faults.raise_if_any("Write the bundle again with cilseg.bundle.write_manifest().", error=ArtifactError)
