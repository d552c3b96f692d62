"""A store behind an fsspec URL, for example ``s3://bucket/registry``.

Objects: ``blobs/<64 hex>`` (every file, named by its hash), ``versions/<64 hex>/manifest.json`` (written last: a
version is there when its manifest is), ``versions/<64 hex>/attachments/<name>.json`` (sidecars), ``events/`` (the event
log in pieces), ``leases/``. What is read lies in a local cache that has the layout of a folder store; files are hashed
on their way there and on their way up.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from cilseg.bundle import MANIFEST, Manifest, hash_file, parse_manifest
from cilseg.errors import ArtifactError, InputError, MissingDependencyError, NotFoundError, StoreError
from cilseg.registry import attachments as attached
from cilseg.registry import event_log
from cilseg.registry.files import BLOCK_BYTES, Progress, Source
from cilseg.registry.killpoints import point
from cilseg.registry.records import Attachment, Version
from cilseg.registry.store import FolderStore, Leftover, manifest_bytes

CACHE_VARIABLE = "CILSEG_CACHE"
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Schemes whose objects appear whole or not at all; elsewhere a file is written under another name and moved."""
_EVENTS_PER_FOLDER = 1000
_DOCUMENTED = {"s3": "s3", "s3a": "s3"}


class RemoteStore:
    """Artifacts in an object store, with a local cache."""

    def __init__(self, url: str, *, progress: Progress | None = None) -> None:
        scheme, _, rest = url.partition("://")
        self.url = f"{scheme}://{rest.rstrip('/')}"
        self._progress = progress
        self._scheme = url.partition("://")[0]
        self._fs, self._root = _filesystem(self.url)
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.work = cache_root() / name
        self.cache = FolderStore(self.work)
        self._named: dict[tuple[str, str, Any], set[str]] = {}

    def check_root(self) -> None:
        """Check that the store answers.

        Raises:
            StoreError: it does not, or refuses us.
        """
        with self._explained("read"):
            self._fs.invalidate_cache()
            self._list("")

    def make_root(self) -> None:
        """Check that the store can be written, and make the cache.

        Raises:
            StoreError: it cannot.
        """
        self._write("cilseg-store.json", json.dumps({"schema": "cilseg.store/1"}).encode())
        self._make_cache()

    # Versions

    def local(self, digest: str) -> Path:
        """Fill the cache with the version's files and attachments; what is there already is compared with its hash."""
        manifest = self.manifest(digest)
        self._make_cache()
        self.cache.put(_Blobs(self, manifest.files), manifest, progress=self._progress)
        folder = self.cache.folder_of(digest)
        for entry in self._sidecars(digest).values():
            self._cache_attachment(digest, entry)
        return folder

    def place_of(self, digest: str) -> str:
        return f"{self.url}/{_version(digest)}"

    def fault_of(self, digest: str) -> str | None:  # noqa: ARG002
        return None

    def manifest(self, digest: str) -> Manifest:
        cached = self.cache.folder_of(digest) / MANIFEST
        if cached.is_file():
            try:
                manifest = parse_manifest(cached.read_bytes(), where=str(cached))
                if manifest.digest == digest:
                    return manifest
            except ArtifactError:
                pass  # damaged in the cache: the store has it
        path = f"{_version(digest)}/{MANIFEST}"
        data = self._read(path)
        if data is None:
            raise ArtifactError(
                f"{self.url}/{path} is missing. Put it back from a backup, or register the bundle again: the same "
                "content gets the same version."
            )
        return parse_manifest(data, where=f"{self.url}/{path}")

    def source(self, digest: str) -> Source:
        return _Blobs(self, self.manifest(digest).files)

    def put(self, source: Source, manifest: Manifest, *, progress: Progress | None = None) -> None:
        """Copy a bundle into the cache, then upload what the store lacks; the manifest goes last.

        Raises:
            ArtifactError: files are missing, changed, or badly named.
            StoreError: the store cannot be written; what was uploaded so far is used by the next attempt.
        """
        self._make_cache()
        self.cache.put(source, manifest, progress=progress)
        folder = self.cache.folder_of(manifest.digest)
        for name, sha256 in manifest.files.items():
            self._upload(folder / name, sha256, name=name, progress=progress)
        self._write(f"{_version(manifest.digest)}/{MANIFEST}", manifest_bytes(manifest))

    def has(self, manifest: Manifest) -> bool:
        with self._explained("read"):
            self._fs.invalidate_cache()
            paths = [f"{_version(manifest.digest)}/{MANIFEST}", *(_blob(sha) for sha in manifest.files.values())]
            return all(self._fs.exists(f"{self._root}/{path}") for path in paths)

    def verify(self, version: Version, *, deep: bool = False) -> None:
        """Check that every file of the version is there; with ``deep``, read it and compare its hash.

        Objects are named by their hash and appear whole, and every reader compares the hash: without ``deep`` nothing
        is transferred.

        Raises:
            ArtifactError: files are missing or changed; all are named.
        """
        faults = []
        for name, sha256 in version.manifest.files.items():
            try:
                if deep and (actual := self._hash(_blob(sha256))) != sha256:
                    faults.append(f"{name} has {actual[:19]}..., expected {sha256[:19]}...")
                elif not deep:
                    self._size(_blob(sha256))
            except FileNotFoundError:
                faults.append(f"{name} is missing ({self.url}/{_blob(sha256)})")
        if faults:
            raise ArtifactError(
                f"{version.ref} is damaged in {self.url}: {'; '.join(faults)}. Register the bundle again, or push it "
                "from another registry."
            )

    def digests(self) -> dict[str, float]:
        now = time.time()
        return {
            f"sha256:{path.split('/')[1]}": _age(info, now)
            for path, info in self._find("versions").items()
            if path.count("/") == 2 and path.endswith(f"/{MANIFEST}")
        }

    def remove_version(self, digest: str) -> None:
        """Remove the manifest, then the sidecars; blobs that nothing names any more are leftovers from then on."""
        folder = _version(digest)
        self._remove(f"{folder}/{MANIFEST}")
        for path in self._find(folder):
            self._remove(path)
        self.cache.remove_version(digest)

    # Attachments

    def attachment_source(self, version: Version) -> Source:
        return _Blobs(self, {name: entry["sha256"] for name, entry in self._sidecars(version.digest).items()})

    def stage_from(self, source: Source, name: str, sha256: str, *, progress: Progress | None = None) -> Path:
        self._make_cache()
        return self.cache.stage_from(source, name, sha256, progress=progress)

    def stage_file(self, source: Path | bytes) -> tuple[Path, str]:
        self._make_cache()
        return self.cache.stage_file(source)

    def publish(self, version: Version, entry: dict[str, Any], *, staged: Path) -> Attachment:
        """Upload a staged file, then its sidecar: the sidecar is the moment it counts."""
        self._upload(staged, entry["sha256"], name=entry["file_name"], progress=self._progress)
        path = f"{_version(version.digest)}/{attached.ATTACHMENTS}/{entry['file_name']}.json"
        self._write(path, attached.sidecar_bytes(entry))
        return self._cache_attachment(version.digest, entry, staged=staged)

    def attachments(self, version: Version) -> dict[str, Attachment]:
        folder = self.cache.folder_of(version.digest) / attached.ATTACHMENTS
        return {name: attached.as_attachment(folder, e) for name, e in self._sidecars(version.digest).items()}

    def attachment(self, version: Version, file_name: str) -> Attachment:
        entries = self._sidecars(version.digest)
        if file_name not in entries:
            raise attached.no_attachment(version.ref, file_name, list(entries))
        entry = entries[file_name]
        if entry["version_digest"] != version.digest:
            raise ArtifactError(
                f"Attachment {file_name!r} of {version.ref} is damaged: it was made for "
                f"{entry['version_digest'][:19]}..., not for this version. Make it again with `cilseg export` or "
                "`cilseg validate`."
            )
        return self._cache_attachment(version.digest, entry)

    def _sidecars(self, digest: str) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted(self._find(f"{_version(digest)}/{attached.ATTACHMENTS}")):
            file_name = path.rpartition("/")[2].removesuffix(".json")
            entry = attached.read_sidecar(self._read(path) or b"", file_name)
            if entry is not None:
                found[file_name] = entry
        return found

    def _cache_attachment(self, digest: str, entry: dict[str, Any], *, staged: Path | None = None) -> Attachment:
        """Put an attachment's file into the cache unless it is there and whole."""
        folder = self.cache.folder_of(digest)
        target = folder / attached.ATTACHMENTS / entry["file_name"]
        if target.is_file() and hash_file(target) == entry["sha256"]:
            held = attached.list_attachments(folder).get(entry["file_name"])
            if held is not None and held.metadata == entry["metadata"]:
                return attached.as_attachment(target.parent, entry)
        if staged is None:
            self._make_cache()
            name = entry["file_name"]
            blobs = _Blobs(self, {name: entry["sha256"]})
            staged = self.stage_from(blobs, name, entry["sha256"], progress=self._progress)
        folder.mkdir(parents=True, exist_ok=True)
        return attached.publish(folder, entry, staged=staged, stage=lambda data: self.cache.stage_file(data)[0])

    # Events

    def log_place(self) -> str:
        return f"{self.url}/events"

    def last_sequence(self) -> int:
        """Return the sequence of the last event in the log; pieces are named by their last event."""
        folders = self._list("events")
        if not folders:
            return 0
        pieces = self._list(f"events/{max(folders)}")
        return int(max(pieces).removesuffix(".jsonl")) if pieces else 0

    def append_events(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``rows`` as pieces of the log, one per thousand; a piece appears whole."""
        pieces: dict[int, list[Mapping[str, Any]]] = {}
        for row in rows:
            pieces.setdefault(row["sequence"] // _EVENTS_PER_FOLDER, []).append(row)
        for folder, piece in sorted(pieces.items()):
            name = f"events/{folder:08d}/{piece[-1]['sequence']:012d}.jsonl"
            self._write(name, event_log.lines(piece), step="log-upload")

    def read_events(self) -> list[dict[str, Any]]:
        text = b"".join(self._read(path) or b"" for path in sorted(self._find("events")))
        return event_log.parse(text, place=self.log_place())

    # Leases

    def write_lease(self, lease_id: str, data: bytes) -> None:
        self._write(f"leases/{lease_id}.json", data)

    def read_leases(self) -> dict[str, bytes]:
        return {path.rpartition("/")[2].removesuffix(".json"): self._read(path) or b"" for path in self._find("leases")}

    def remove_lease(self, lease_id: str) -> None:
        self._remove(f"leases/{lease_id}.json")

    # Leftovers

    def leftovers(self, live: frozenset[str]) -> list[Leftover]:
        """Return manifests that are not ``live``, and files that no manifest and no sidecar names."""
        now = time.time()
        objects = self._find("versions")
        found, named = [], set()
        for path, info in objects.items():
            digest = f"sha256:{path.split('/')[1]}"
            if digest not in live:
                if path.endswith(f"/{MANIFEST}"):
                    what = "a version without a row in the database"
                    found.append(Leftover(f"{self.url}/{path}", what, _age(info, now), self._remover(digest)))
                elif f"{_version(digest)}/{MANIFEST}" not in objects:
                    what = "part of a version that is gone"
                    found.append(Leftover(f"{self.url}/{path}", what, _age(info, now), self._object_remover(path)))
            # Read once: gc calls this again under the write lock, where only what is new should take time.
            key = (path, str(info.get("ETag") or info.get("LastModified") or info.get("mtime")), info.get("size"))
            if key not in self._named:
                self._named[key] = self._blobs_named_by(path, digest)
            named |= self._named[key]
        for path, info in self._find("blobs").items():
            if path not in named:
                what = "a file that no version names"
                found.append(Leftover(f"{self.url}/{path}", what, _age(info, now), self._object_remover(path)))
        return [*found, *(self.cache._temporary() if self.work.is_dir() else [])]

    def strangers(self, digest: str, names: set[str]) -> list[str]:  # noqa: ARG002
        """Nothing: files are named by manifests and sidecars alone here."""
        return []

    def _blobs_named_by(self, path: str, digest: str) -> set[str]:
        data = self._read(path) or b""
        try:
            if path.endswith(f"/{MANIFEST}"):
                return {_blob(sha256) for sha256 in json.loads(data)["files"].values()}
            return {_blob(json.loads(data)["sha256"])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.url}/{path} of version {digest[:19]}... cannot be read ({error}), so it is not known which "
                "files are needed. Put it back from a backup, or remove it, and run the command again."
            ) from error

    def _remover(self, digest: str) -> Callable[[], None]:
        return lambda: self.remove_version(digest)

    def _object_remover(self, path: str) -> Callable[[], None]:
        return lambda: self._remove(path)

    # Objects

    def _make_cache(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)

    def _upload(self, path: Path, sha256: str, *, name: str, progress: Progress | None) -> None:
        total = path.stat().st_size
        try:
            if self._size(_blob(sha256)) == total:
                return
        except FileNotFoundError:
            pass
        digest, done = hashlib.sha256(), 0

        def blocks() -> Iterator[bytes]:
            nonlocal done
            with path.open("rb") as reader:
                while block := reader.read(BLOCK_BYTES):
                    digest.update(block)
                    done += len(block)
                    yield block
                    if progress is not None:
                        progress(name, done, total)

        self._put_blocks(_blob(sha256), blocks(), step="upload")
        actual = f"sha256:{digest.hexdigest()}"
        if actual != sha256 or self._size(_blob(sha256)) != total:
            self._remove(_blob(sha256))
            raise ArtifactError(f"{path} changed while it was uploaded (now {actual[:19]}...). Repeat the command.")

    def _write(self, path: str, data: bytes, *, step: str = "upload") -> None:
        self._put_blocks(path, iter([data]), step=step)

    def _put_blocks(self, path: str, blocks: Iterator[bytes], *, step: str) -> None:
        target = f"{self._root}/{path}"
        with self._explained("write"):
            atomic = self._scheme in _ATOMIC
            name = target if atomic else f"{target}.{os.getpid()}.part"
            if not atomic:
                self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)
            try:
                with self._fs.open(name, "wb", block_size=max(5 << 20, BLOCK_BYTES)) as writer:
                    for block in blocks:
                        point(step)
                        writer.write(block)
                    point(f"{step}-end")
            except Exception:  # leaving the block closed the file, and so made an object of what was written
                with suppress(Exception):
                    self._fs.rm_file(name)
                raise
            if not atomic:
                point("rename")
                self._fs.mv(name, target)
            self._fs.invalidate_cache()

    def _read(self, path: str) -> bytes | None:
        with self._explained("read"):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{path}"))
            except FileNotFoundError:
                return None

    def _size(self, path: str) -> int:
        with self._explained("read"):
            self._fs.invalidate_cache()
            return int(self._fs.info(f"{self._root}/{path}")["size"])

    def _hash(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._explained("read"), self._fs.open(f"{self._root}/{path}", "rb", cache_type="readahead") as reader:
            while block := reader.read(BLOCK_BYTES):
                digest.update(block)
        return f"sha256:{digest.hexdigest()}"

    def _list(self, path: str) -> list[str]:
        """Return the last parts of the names directly below ``path``."""
        with self._explained("read"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(f"{self._root}/{path}".rstrip("/"), detail=False)
            except FileNotFoundError:
                if path == "" and self._scheme in _ATOMIC and not self._fs.exists(self._root.split("/")[0]):
                    raise
                return []
        return [name for entry in entries if (name := str(entry).rstrip("/").rpartition("/")[2])]

    def _find(self, path: str) -> dict[str, dict[str, Any]]:
        """Return everything below ``path``, with what the store says about it; names from the store's root."""
        with self._explained("read"):
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._root}/{path}", detail=True)
        prefix = self._fs._strip_protocol(self._root) + "/"
        return {str(name).removeprefix(prefix): info for name, info in found.items() if not str(name).endswith(".part")}

    def _remove(self, path: str) -> None:
        point("delete")
        with self._explained("write"):
            try:
                self._fs.rm_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return

    @contextmanager
    def _explained(self, act: str) -> Iterator[None]:
        """Turn what the store's library raises into an error a user can read; a missing file stays what it is."""
        try:
            yield
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise StoreError(f"{self.url}: {error}. Make the bucket, or correct the URL.") from error
            raise
        except PermissionError as error:
            raise InputError(
                f"{self.url} may not be {'read' if act == 'read' else 'written'} with these credentials ({error}). "
                "Nothing was changed; use others, or another store."
            ) from error
        except Exception as error:
            if isinstance(error, (ArtifactError, NotFoundError, StoreError)) or not _of_the_store(error):
                raise
            raise StoreError(
                f"{self.url} cannot be {'read' if act == 'read' else 'written'}: {error}. Check the URL, the "
                "credentials and the network, then repeat the command."
            ) from error


class _Blobs:
    """Files of a version by name, read from the store by hash."""

    def __init__(self, store: RemoteStore, files: Mapping[str, str]) -> None:
        self._store, self._files = store, files

    def size(self, name: str) -> int:
        return self._store._size(_blob(self._files[name]))

    def open(self, name: str, *, offset: int = 0) -> IO[bytes]:
        store = self._store
        with store._explained("read"):
            path = f"{store._root}/{_blob(self._files[name])}"
            stream: IO[bytes] = store._fs.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
            stream.seek(offset)
        return stream


def cache_root() -> Path:
    """Return the folder for local copies of remote artifacts: ``CILSEG_CACHE``, or ``~/.cache/cilseg``."""
    base = os.environ.get(CACHE_VARIABLE)
    if base:
        return Path(base).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cilseg"


def _filesystem(url: str) -> tuple[Any, str]:
    if not url.partition("://")[2]:
        raise InputError(f"Store {url!r} names no place. Give a folder or a URL such as s3://bucket/registry.")
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        extra = _DOCUMENTED.get(scheme)
        how = f"pip install 'cilseg[{extra}]'" if extra else f"install the fsspec package for {scheme}://"
        raise MissingDependencyError(f"The store {url} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise InputError(f"Store {url!r}: {error}. Give a folder or a URL such as s3://bucket/registry.") from error
    return fs, str(path).rstrip("/")


def _of_the_store(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec", "gcsfs")


def _blob(sha256: str) -> str:
    return f"blobs/{sha256.removeprefix('sha256:')}"


def _version(digest: str) -> str:
    return f"versions/{digest.removeprefix('sha256:')}"


def _age(info: Mapping[str, Any], now: float) -> float:
    """Return the age of an object in seconds; 0 where the store does not say."""
    stamp = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(stamp, datetime):
        return now - stamp.timestamp()
    return now - float(stamp) if isinstance(stamp, (int, float)) else 0.0
