"""A version as one file, for sites without a network: an uncompressed tar that any tar reads.

``package.json`` (what it is, and the hash and size of every file), ``manifest.json``, ``files/...``,
``attachments/...``. The bytes depend on the content alone, so a copy that was killed is compared with what it should be
and gone on with.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cilseg.bundle import MANIFEST, Manifest, parse_manifest
from cilseg.errors import ArtifactError, ConflictError, InputError
from cilseg.registry.files import BLOCK_BYTES, Progress, Source, replace_file
from cilseg.registry.killpoints import point
from cilseg.registry.store import check_listing, manifest_bytes

PACKAGE_SCHEMA = "cilseg.package/1"
SUFFIX = ".tar"
_INDEX = "package.json"
_BLOCK = tarfile.BLOCKSIZE


def write_package(
    path: Path,
    *,
    ref: str,
    manifest: Manifest,
    files: Source,
    entries: Mapping[str, dict[str, Any]],
    attachments: Source,
    progress: Progress | None = None,
) -> bool:
    """Write a version to ``path``; return false where it is there already, with the same content.

    Raises:
        ConflictError: ``path`` is another file.
        ArtifactError: a file is missing or does not have its hash; nothing is kept.
        OSError: the disk is full.
    """
    index = {
        "schema": PACKAGE_SCHEMA,
        "ref": ref,
        "digest": manifest.digest,
        "files": {name: {"sha256": sha, "size": files.size(name)} for name, sha in manifest.files.items()},
        "attachments": dict(entries),
    }
    if path.exists():
        found = open_package(path)
        if found.index == json.loads(json.dumps(index, default=str)):
            found.verify()
            return False
        raise ConflictError(f"{path} is there already and holds something else. Give another name, or remove it.")
    part = path.with_name(f"{path.name}.part")
    try:
        handle = part.open("r+b" if part.exists() else "w+b")
    except FileNotFoundError as error:
        raise InputError(f"The folder {path.parent} does not exist; make it first.") from error
    with handle:
        writer = _Resumed(handle)
        try:
            _add_bytes(writer, _INDEX, (json.dumps(index, indent=1, default=str) + "\n").encode())
            _add_bytes(writer, MANIFEST, manifest_bytes(manifest))
            for name, sha256 in manifest.files.items():
                _add_file(writer, f"files/{name}", files, name, sha256, progress)
            for name, entry in entries.items():
                _add_file(writer, f"attachments/{name}", attachments, name, entry["sha256"], progress)
            writer.write(b"\0" * (2 * _BLOCK))
        except (ArtifactError, OSError):
            part.unlink(missing_ok=True)
            raise
        handle.truncate(writer.position)
        handle.flush()
        point("fsync")
        os.fsync(handle.fileno())
    replace_file(part, path)
    return True


class _Resumed:
    """Writes what is not there yet; the beginning that a killed process wrote is compared instead."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._have = handle.seek(0, os.SEEK_END)
        self.position = 0

    def write(self, data: bytes) -> None:
        end = self.position + len(data)
        if end <= self._have:
            self._handle.seek(self.position)
            if self._handle.read(len(data)) == data:
                self.position = end
                return
        self._have = 0
        point("write")
        self._handle.seek(self.position)
        self._handle.write(data)
        self.position = end


def _add_bytes(writer: _Resumed, name: str, data: bytes) -> None:
    writer.write(_header(name, len(data)))
    writer.write(data + _padding(len(data)))


def _add_file(writer: _Resumed, member: str, source: Source, name: str, sha256: str, progress: Progress | None) -> None:
    total = source.size(name)
    writer.write(_header(member, total))
    digest, done = hashlib.sha256(), 0
    for block in _blocks(source, name):
        digest.update(block)
        done += len(block)
        writer.write(block)
        if progress is not None:
            progress(name, done, total)
    actual = f"sha256:{digest.hexdigest()}"
    if actual != sha256 or done != total:
        raise ArtifactError(
            f"{name} is damaged: it has {actual[:19]}..., expected {sha256[:19]}... ({done} bytes). `cilseg fsck` "
            "lists all that is; nothing was written."
        )
    writer.write(_padding(total))


def _blocks(source: Source, name: str) -> Iterator[bytes]:
    with source.open(name) as reader:
        while block := reader.read(BLOCK_BYTES):
            yield block


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % _BLOCK)


class Package:
    """A package file whose index and manifest were read and checked; the files are checked as they are read."""

    def __init__(self, path: Path, index: dict[str, Any], manifest: Manifest, places: Mapping[str, tuple[int, int]]):
        self.path, self.index, self.manifest, self._places = path, index, manifest, places

    @property
    def ref(self) -> str:
        return str(self.index["ref"])

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Sidecar entries of the attachments by file name."""
        return dict(self.index["attachments"])

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            ArtifactError: one differs.
        """
        for source, wanted in ((self.files(), self.index["files"]), (self.attachments(), self.entries)):
            for name, entry in wanted.items():
                digest = hashlib.sha256()
                for block in _blocks(source, name):
                    digest.update(block)
                if f"sha256:{digest.hexdigest()}" != entry["sha256"]:
                    raise ArtifactError(f"{self.path} is damaged: {name} does not have its hash. Remove the file.")

    def files(self) -> Source:
        return _Members(self.path, self._places, "files/")

    def attachments(self) -> Source:
        return _Members(self.path, self._places, "attachments/")


def open_package(path: Path) -> Package:
    """Read what a package holds.

    Raises:
        InputError: it is no package.
        ArtifactError: it is truncated, changed, or from a newer cilseg.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            places = {m.name: (m.offset_data, m.size) for m in members}
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except tarfile.ReadError as error:
        size = path.stat().st_size
        raise ArtifactError(
            f"{path} is no package or was cut off ({error}; {size} bytes). Copy it again, or make it with "
            f"`cilseg push REF {path.name}`."
        ) from error
    if not members or members[0].name != _INDEX:
        raise InputError(f"{path} is a tar, but no package: it does not start with {_INDEX}. Make one: cilseg push.")
    try:
        index = json.loads(_read(path, places[_INDEX]))
        schema = index["schema"]
        named = [*(f"files/{n}" for n in index["files"]), *(f"attachments/{n}" for n in index["attachments"]), MANIFEST]
        digest = index["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: {_INDEX} cannot be read ({error!r}). Copy the package again.") from error
    if schema != PACKAGE_SCHEMA:
        raise ArtifactError(f"{path} has schema {schema!r}, this cilseg reads {PACKAGE_SCHEMA!r}. Update cilseg.")
    length = path.stat().st_size
    missing = [n for n in named if n not in places or sum(places[n]) > length]
    if missing:
        raise ArtifactError(f"{path} was cut off: {', '.join(missing)} is missing or incomplete. Copy it again.")
    manifest = parse_manifest(_read(path, places[MANIFEST]), where=f"{path}: {MANIFEST}")
    check_listing(manifest)
    if manifest.digest != digest:
        raise ArtifactError(f"{path} was changed: its manifest is {manifest.digest[:19]}..., not {digest[:19]}....")
    return Package(path, index, manifest, places)


def _read(path: Path, place: tuple[int, int]) -> bytes:
    with path.open("rb") as stream:
        stream.seek(place[0])
        return stream.read(place[1])


class _Members:
    """Members of a tar below a folder, by name."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]], folder: str) -> None:
        self._path, self._places, self._folder = path, places, folder

    def size(self, name: str) -> int:
        if self._folder + name not in self._places:
            raise FileNotFoundError(f"{self._path}: {self._folder}{name}")
        return self._places[self._folder + name][1]

    def open(self, name: str, *, offset: int = 0) -> IO[bytes]:
        begin, size = self._places[self._folder + name]
        return io.BufferedReader(_Window(self._path.open("rb"), begin + offset, size - offset), BLOCK_BYTES)


class _Window(io.RawIOBase):
    """The ``size`` bytes of a file from ``begin`` on."""

    def __init__(self, stream: IO[bytes], begin: int, size: int) -> None:
        stream.seek(begin)
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
