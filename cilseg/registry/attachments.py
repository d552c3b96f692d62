"""Attachments: files made for a version after it was registered, beside the bundle in ``attachments/``.

Each has a sidecar ``<file name>.json`` with its hash and the version's digest. A file without a sidecar is invisible.
To replace a file, the sidecar first announces the new one under ``next``; the rename of the file is the moment it
counts, so that a killed process leaves either the old attachment or the new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from cilseg.bundle import hash_file
from cilseg.errors import ArtifactError, InputError, NotFoundError, did_you_mean
from cilseg.registry.files import replace_file
from cilseg.registry.records import Attachment

ATTACHMENTS = "attachments"
SIDECAR_SCHEMA = "cilseg.attachment/1"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_READ_ATTEMPTS = 4


def check_file_name(file_name: str, known: Collection[str]) -> None:
    """Refuse names that leave the folder or collide with the sidecar of one of the ``known`` attachments.

    Raises:
        InputError: the name is not allowed.
    """
    if not _FILE_NAME.fullmatch(file_name):
        raise InputError(
            f"Attachment name {file_name!r} is not allowed. Use letters, digits, '.', '_', '+' and '-', no folders."
        )
    stem = file_name.removesuffix(".json")
    if (stem != file_name and stem in known) or f"{file_name}.json" in known:
        raise InputError(f"Attachment name {file_name!r} is taken by the sidecar of another one; use another name.")


def sidecar_entry(
    file_name: str, *, digest: str, sha256: str, size_bytes: int, kind: str, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Return what the sidecar of an attachment to version ``digest`` says."""
    return {
        "schema": SIDECAR_SCHEMA,
        "file_name": file_name,
        "version_digest": digest,
        "kind": kind,
        "sha256": sha256,
        "size_bytes": size_bytes,
        "metadata": metadata,
    }


def sidecar_bytes(entry: dict[str, Any]) -> bytes:
    """Return a sidecar as it is stored."""
    return (json.dumps(entry, indent=2, ensure_ascii=False, default=str) + "\n").encode()


def publish(
    version_folder: Path,
    entry: dict[str, Any],
    *,
    staged: Path,
    stage: Callable[[bytes], Path],
) -> Attachment:
    """Move a staged file into place with its sidecar ``entry``; the caller holds the registry's write lock.

    ``stage`` writes bytes to a temporary file of the store, fsynced, and returns it.
    """
    folder = version_folder / ATTACHMENTS
    folder.mkdir(exist_ok=True)
    file_name = entry["file_name"]
    current = _current_entry(folder, file_name)
    target = folder / f"{file_name}.json"
    # Everything that needs room on the disk is written before the first rename.
    sidecars: list[Path] = []
    try:
        sidecars.append(stage(sidecar_bytes(entry)))
        if current is not None and current["sha256"] != entry["sha256"]:
            sidecars.append(stage(sidecar_bytes({**current, "next": entry})))
            replace_file(sidecars[1], target)
        replace_file(staged, folder / file_name)
        replace_file(sidecars[0], target)
    finally:
        for leftover in sidecars:
            leftover.unlink(missing_ok=True)
    return as_attachment(folder, entry)


def list_attachments(version_folder: Path) -> dict[str, Attachment]:
    """Return the attachments by file name. Hashes are compared by :func:`find_attachment`, not here."""
    folder = version_folder / ATTACHMENTS
    found: dict[str, Attachment] = {}
    for path in sorted(folder.glob("*.json")):
        file_name = path.name.removesuffix(".json")
        entry = _current_entry(folder, file_name)
        if entry is not None and (folder / file_name).is_file():
            found[file_name] = as_attachment(folder, entry)
    return found


def find_attachment(version_folder: Path, file_name: str, *, ref: str, digest: str) -> Attachment:
    """Return one attachment after comparing its file with the recorded hash.

    Raises:
        NotFoundError: there is none of that name.
        ArtifactError: the file is missing or changed, or belongs to another version than ``digest``.
    """
    folder = version_folder / ATTACHMENTS
    fault = ""
    # A file may be replaced between reading its sidecar and hashing it; read both again then.
    for _ in range(_READ_ATTEMPTS):
        entry = _current_entry(folder, file_name)
        if entry is None:
            raise no_attachment(ref, file_name, list(list_attachments(version_folder)))
        path = folder / file_name
        if entry["version_digest"] != digest:
            fault = f"it was made for {entry['version_digest'][:19]}..., not for this version"
        elif not path.is_file():
            fault = "the file is missing"
        elif (actual := hash_file(path)) != entry["sha256"]:
            fault = f"it has {actual[:19]}..., expected {entry['sha256'][:19]}... ({path.stat().st_size} bytes)"
        else:
            return as_attachment(folder, entry)
    raise ArtifactError(
        f"Attachment {file_name!r} of {ref} is damaged: {fault}. Make it again with `cilseg export` or "
        "`cilseg validate`."
    )


def no_attachment(ref: str, file_name: str, known: Collection[str]) -> NotFoundError:
    """Return the error for an attachment that is not there."""
    return NotFoundError(
        f"{ref} has no attachment {file_name!r}.{did_you_mean(file_name, known)} "
        f"It has: {', '.join(known) or 'none'}. `cilseg export` and `cilseg validate` make them."
    )


def read_sidecar(data: bytes, file_name: str) -> dict[str, Any] | None:
    """Return the entry of a sidecar, ``None`` where ``data`` is none of ``file_name``."""
    try:
        entry = json.loads(data)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("schema") != SIDECAR_SCHEMA or entry.get("file_name") != file_name:
        return None
    return entry


def _current_entry(folder: Path, file_name: str) -> dict[str, Any] | None:
    """Return the sidecar entry that counts: ``next`` once its file is in place."""
    entry = _sidecar(folder, file_name)
    if entry is None:
        return None
    following = entry.pop("next", None)
    target = folder / file_name
    if following is not None and target.is_file() and hash_file(target) == following["sha256"]:
        return dict(following)
    return entry


def _sidecar(folder: Path, file_name: str) -> dict[str, Any] | None:
    """Return the sidecar of ``file_name``, ``None`` where there is no file of that name or it is no sidecar."""
    try:
        return read_sidecar((folder / f"{file_name}.json").read_bytes(), file_name)
    except FileNotFoundError:
        return None


def as_attachment(folder: Path, entry: dict[str, Any]) -> Attachment:
    """Return what ``entry`` describes, its file being in ``folder``."""
    return Attachment(
        file_name=entry["file_name"],
        path=folder / entry["file_name"],
        kind=entry["kind"],
        sha256=entry["sha256"],
        metadata=entry["metadata"],
        version_digest=entry["version_digest"],
    )
