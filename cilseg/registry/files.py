"""How the registry touches the disk: blocks with hashes, fsync, rename; each act behind a kill point."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from cilseg.bundle import fsync_directory
from cilseg.registry.killpoints import point

READ_ONLY = 0o444
BLOCK_BYTES = 4 << 20
Progress = Callable[[str, int, int], None]
"""Called while a file is copied: its name, bytes done, bytes in all."""


class Source(Protocol):
    """Files by name, to be copied from: a folder, a package file, or another store."""

    def size(self, name: str) -> int:
        """Return the length in bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def open(self, name: str, *, offset: int = 0) -> IO[bytes]:
        """Open a file for reading at ``offset`` bytes."""


class FolderSource:
    """The files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def size(self, name: str) -> int:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path.stat().st_size

    def open(self, name: str, *, offset: int = 0) -> IO[bytes]:
        stream = (self.folder / name).open("rb")
        stream.seek(offset)
        return stream


def receive(
    source: Source, name: str, target: Path, *, expected: str | None = None, progress: Progress | None = None
) -> str:
    """Copy a file to ``target``, going on where a killed copy ended; return ``sha256:...`` of what is there now.

    What ``target`` holds already is hashed and kept as the beginning. Where the whole then differs from ``expected``,
    the copy starts once more from nothing.

    Raises:
        FileNotFoundError: ``source`` has no such file.
        OSError: it cannot be read, or the disk is full.
    """
    total = source.size(name)
    have = target.stat().st_size if target.exists() else 0
    if have > total:
        have = 0
    digest = hashlib.sha256()
    if have:
        target.chmod(0o644)
        with target.open("rb") as reader:
            for block in _blocks(reader, have):
                digest.update(block)
    done = have
    if not have or done < total:
        with source.open(name, offset=have) as reader, target.open("r+b" if have else "wb") as writer:
            writer.seek(have)
            while block := reader.read(BLOCK_BYTES):
                point("write")
                writer.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(name, done, total)
            writer.flush()
            point("fsync")
            os.fsync(writer.fileno())
    target.chmod(READ_ONLY)
    actual = f"sha256:{digest.hexdigest()}"
    if have and expected is not None and actual != expected:
        target.unlink()
        return receive(source, name, target, expected=expected, progress=progress)
    return actual


def write_bytes(data: bytes, target: Path) -> str:
    """Write a small file, fsync it, make it read-only, and return ``sha256:...``."""
    point("write")
    with target.open("wb") as writer:
        writer.write(data)
        writer.flush()
        point("fsync")
        os.fsync(writer.fileno())
    target.chmod(READ_ONLY)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    point("fsync-folder")
    fsync_directory(folder)


def replace_file(staged: Path, target: Path) -> None:
    """Move a finished, fsynced file over ``target`` so that the move survives a power cut."""
    point("rename")
    staged.replace(target)
    sync_folder(target.parent)


def move_folder(staged: Path, target: Path) -> bool:
    """Move a folder to ``target``; return false when something is there already."""
    point("rename")
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    sync_folder(target.parent)
    return True


def remove(path: Path) -> None:
    """Remove a file or folder that nothing refers to any more; one that is gone already is no error."""
    point("delete")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold ``lock``, a file that is made for this and removed afterwards, against other processes."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # The holder before us removed the file: then somebody else may hold a new one of that name.
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)


def _blocks(reader: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (block := reader.read(min(BLOCK_BYTES, length))):
        length -= len(block)
        yield block
