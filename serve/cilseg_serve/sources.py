"""Which images a batch run is about: files, folders, tar archives, CSV lists and fsspec prefixes, each under one name.

Everything is listed before anything is computed, so that names do not collide, shards do not overlap and all faults of
the inputs are reported together.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cilseg.errors import CilsegError, FaultCollector, InputError, MissingDependencyError
from cilseg_serve.images import IMAGE_SUFFIXES, decode_image, read_image

CSV_COLUMNS = ("file", "file_name", "filename", "path", "image")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LOOKED_FOR = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"


@dataclass(frozen=True)
class Item:
    """One image of a batch run.

    Attributes:
        file: a path, a URL, or ``ARCHIVE/MEMBER``; what the summary says.
        name: output name without suffix, unique in the run.
        archive: the tar that holds it, if any.
        member: its name there.
        offset: where its bytes begin in the tar; -1: the tar is compressed and is read in order.
        size_bytes: how many bytes, in a tar.
    """

    file: str
    name: str
    archive: str | None = None
    member: str = ""
    offset: int = 0
    size_bytes: int = 0

    @property
    def in_order(self) -> bool:
        """Whether its bytes come from a :class:`ArchiveReader`, not from anywhere at any time."""
        return self.offset < 0


def find_items(inputs: Sequence[str | Path], *, shut: Sequence[Path] = ()) -> list[Item]:
    """List every image among ``inputs``, each once, in a fixed order.

    Files named directly are taken whatever their suffix, unless it is that of a tar archive or a CSV list; folders,
    archives and prefixes give their images by suffix, hidden ones left out.

    Args:
        inputs: paths and URLs (``s3://bucket/prefix``).
        shut: folders that are not looked into: where an earlier run wrote.

    Raises:
        InputError: inputs that do not exist or hold no images, archives with unsafe names; all are named.
        MissingDependencyError: a URL without fsspec.
    """
    faults = FaultCollector("Inputs")
    listing = _Listing(tuple(folder.resolve() for folder in shut))
    for given in inputs:
        try:
            listing.add(str(given))
        except MissingDependencyError:
            raise
        except CilsegError as exc:
            faults.add(str(exc))
    if not inputs:
        faults.add("none were given")
    faults.raise_if_any("Give image files, or folders, archives, lists or prefixes that hold images.")
    return listing.items


def read_item(item: Item, data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Read and decode one image as ``(H, W, 3)`` uint8 RGB; ``data`` is its file where that was read already.

    Raises:
        InputError: it cannot be read or is no image that can be used.
    """
    if item.archive is None and "://" not in item.file:
        return read_image(item.file)
    if data is None:
        data = _fetch(item)
    if not data:
        raise InputError(f"{item.file}: the image file is empty (0 bytes). Copy it again or leave it out.")
    return decode_image(io.BytesIO(data), name=item.file)


class ArchiveReader:
    """Reads the members of compressed archives in the order in which they were listed, each archive once."""

    def __init__(self) -> None:
        self._archive: str | None = None
        self._members: Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]] = iter(())

    def read(self, item: Item) -> bytes:
        """Return the bytes of one member.

        Raises:
            InputError: the archive is damaged, or does not hold it any more.
        """
        try:
            if item.archive != self._archive:
                self._archive, self._members = item.archive, _members(str(item.archive))
            for member, tar in self._members:
                if member.name == item.member:
                    stream = tar.extractfile(member)
                    return stream.read() if stream is not None else b""
        except (tarfile.TarError, OSError, EOFError) as exc:
            raise InputError(f"{item.archive}: damaged archive ({exc}). Copy it again.") from exc
        raise InputError(f"{item.file}: no longer in the archive. List the inputs again.")


class _Listing:
    def __init__(self, shut: tuple[Path, ...]) -> None:
        self.items: list[Item] = []
        self._shut = shut
        self._seen: set[str] = set()
        self._taken: set[str] = set()

    def add(self, given: str) -> None:
        path = Path(given)
        if "://" in given:
            self._add_url(given)
        elif path.is_dir():
            self._add_folder(path)
        elif not path.is_file():
            raise InputError(f"{given}: no such file or folder")
        elif path.name.lower().endswith(_TAR_SUFFIXES):
            self._add_archive(given)
        elif path.suffix.lower() in (".csv", ".tsv"):
            self._add_list(path)
        else:
            self._add_file(path, path.name)

    def _append(self, name: str, file: str, *, key: str | None = None, **place: object) -> None:
        """Add an item unless it is there; a name taken twice gets ``-2``, ``-3``."""
        if (key or file) in self._seen:
            return
        self._seen.add(key or file)
        stem = PurePosixPath(name).with_suffix("")
        candidate, number = stem, 1
        while candidate.as_posix().casefold() in self._taken:  # some file systems do not tell case apart
            number += 1
            candidate = stem.with_name(f"{stem.name}-{number}")
        self._taken.add(candidate.as_posix().casefold())
        self.items.append(Item(file, candidate.as_posix(), **place))  # type: ignore[arg-type]

    def _add_file(self, path: Path, name: str) -> None:
        self._append(name, str(path), key=str(path.resolve()))

    def _add_folder(self, folder: Path) -> None:
        def wanted(file: Path) -> bool:
            inside_output = any(file.resolve().is_relative_to(part) for part in self._shut)
            return _is_shown_image(file.relative_to(folder).as_posix()) and not inside_output and file.is_file()

        found = sorted(file for file in folder.rglob("*") if wanted(file))
        if not found:
            raise InputError(f"{folder}: no images in this folder ({_LOOKED_FOR})")
        for file in found:
            self._add_file(file, file.relative_to(folder).as_posix())

    def _add_archive(self, archive: str) -> None:
        compressed = not tarfile_is_plain(archive)
        count = 0
        try:
            for member, _ in _members(archive):
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or member.sparse or not _is_shown_image(member.name):
                    continue
                if ".." in parts or PurePosixPath(member.name).is_absolute():
                    raise InputError(f"{archive}: member {member.name!r} points outside the archive. Pack it again")
                count += 1
                offset = -1 if compressed else member.offset_data
                file = f"{archive}/{member.name}"
                self._append(
                    member.name, file, archive=archive, member=member.name, offset=offset, size_bytes=member.size
                )
        except (tarfile.TarError, OSError, EOFError) as exc:
            raise InputError(f"{archive}: damaged or no tar archive ({exc}). Copy it again") from exc
        if not count:
            raise InputError(f"{archive}: no images in this archive ({_LOOKED_FOR})")

    def _add_list(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                rows = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                header = [name.strip() for name in rows.fieldnames or []]
                column = next((name for name in CSV_COLUMNS if name in header), None)
                if column is None:
                    raise InputError(
                        f"{path}: no column {', '.join(CSV_COLUMNS[:-1])} or {CSV_COLUMNS[-1]} in its header, got "
                        f"{', '.join(header) or 'nothing'}"
                    )
                rows.fieldnames = header
                files = [(row[column] or "").strip() for row in rows]
        except (csv.Error, UnicodeDecodeError) as exc:
            raise InputError(f"{path}: not a CSV file in UTF-8 ({exc})") from exc
        named = [file for file in files if file]
        if not named:
            raise InputError(f"{path}: lists no images")
        for file in named:
            relative = PurePosixPath(file)
            name = relative.name if relative.is_absolute() or ".." in relative.parts or "://" in file else file
            if "://" in file:
                self._append(name, file)
            else:
                self._add_file(path.parent / file, name)

    def _add_url(self, url: str) -> None:
        filesystem, root = _filesystem(url)
        try:
            if PurePosixPath(root).suffix.lower() in IMAGE_SUFFIXES:
                found = [root]
            else:
                found = sorted(str(path) for path in filesystem.find(root))
        except Exception as exc:  # every store has errors of its own
            raise InputError(f"{url}: cannot be listed ({exc or type(exc).__name__})") from exc
        prefix = root.rstrip("/") + "/"
        count = 0
        for path in found:
            name = path.removeprefix(prefix) if path.startswith(prefix) else PurePosixPath(path).name
            if _is_shown_image(name):
                count += 1
                self._append(name, filesystem.unstrip_protocol(path))
        if not count:
            raise InputError(f"{url}: no images under this prefix ({_LOOKED_FOR})")


def tarfile_is_plain(archive: str) -> bool:
    """Whether a tar is not compressed, so that members can be read from anywhere."""
    try:
        with tarfile.open(archive, "r:"):
            return True
    except tarfile.TarError:
        return False


def _members(archive: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            yield member, tar


def _is_shown_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _fetch(item: Item) -> bytes:
    if item.archive is not None:
        try:
            with Path(item.archive).open("rb") as stream:
                stream.seek(item.offset)
                return stream.read(item.size_bytes)
        except OSError as exc:
            raise InputError(f"{item.archive}: cannot be read ({exc}). Copy it again.") from exc
    filesystem, path = _filesystem(item.file)
    try:
        return bytes(filesystem.cat_file(path))
    except Exception as exc:  # every store has errors of its own
        raise InputError(f"{item.file}: cannot be read ({exc or type(exc).__name__}). Check that it is there.") from exc


def _filesystem(url: str):  # type: ignore[no-untyped-def]
    """Return the fsspec file system of a URL, and the path there."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as exc:
        raise MissingDependencyError(f"{url} needs fsspec and its driver ({exc}): pip install 'cilseg[s3]'.") from exc
    except ValueError as exc:
        raise InputError(f"{url}: {exc}") from exc
