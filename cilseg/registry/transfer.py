"""``cilseg push`` and ``cilseg pull``: a version with its attachments to or from one file, or another registry.

Both can be repeated after they were killed: what arrived is kept, after comparing it with its hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.errors import ConflictError, InputError
from cilseg.registry.attachments import sidecar_entry
from cilseg.registry.files import Source
from cilseg.registry.killpoints import operation
from cilseg.registry.package import SUFFIX, open_package, write_package
from cilseg.registry.records import Version
from cilseg.registry.references import check_name
from cilseg.registry.registry import Registry, user_name


@dataclass(frozen=True)
class Transfer:
    """What was copied. ``target`` is a reference in the target registry, or the package file.

    ``kept`` names attachments that the target has with another content and that were not replaced.
    """

    source: str
    target: str
    digest: str
    attachments: tuple[str, ...]
    kept: tuple[str, ...]


def push(
    registry: Registry,
    ref: str | None,
    target: Registry | Path,
    *,
    name: str | None = None,
    who: str | None = None,
    replace: bool = False,
) -> Transfer:
    """Copy a version to another registry, or into the package file ``target``.

    Raises:
        NotFoundError: no such version.
        ConflictError: the file is there and holds something else, or both registries are the same.
        ArtifactError: files of the version are damaged.
        OSError: the disk is full.
    """
    version = registry.resolve(ref)
    entries = _entries(version)
    files, attachments = version.store.source(version.digest), version.store.attachment_source(version)
    with operation("push"):
        if isinstance(target, Registry):
            origin = f"pushed from {version.ref} of {registry.url}"
            return _copy(target, name or version.name, version.ref, version.manifest, files, entries, attachments,
                         why=origin, who=who, replace=replace, other=registry)  # fmt: skip
        write_package(
            target,
            ref=version.ref,
            manifest=version.manifest,
            files=files,
            entries=entries,
            attachments=attachments,
            progress=registry.progress,
        )
    return Transfer(version.ref, str(target), version.digest, tuple(entries), ())


def pull(
    registry: Registry,
    source: Registry | Path,
    ref: str | None = None,
    *,
    name: str | None = None,
    who: str | None = None,
    replace: bool = False,
) -> Transfer:
    """Take a version from another registry or from a package file; it gets the next number of its name here.

    Raises:
        InputError: the file is no package; ``ref`` with a package; a name that is not allowed.
        NotFoundError: no such version there.
        ArtifactError: the package or files of the version are damaged.
        OSError: the disk is full; the registry is as it was.
    """
    with operation("pull"):
        if isinstance(source, Registry):
            version = source.resolve(ref)
            return _copy(registry, name or version.name, version.ref, version.manifest,
                         version.store.source(version.digest), _entries(version),
                         version.store.attachment_source(version), why=f"pulled from {version.ref} of {source.url}",
                         who=who, replace=replace, other=source)  # fmt: skip
        if ref is not None:
            raise InputError(f"{source} holds one version; leave the reference {ref!r} out.")
        package = open_package(source)
        return _copy(registry, name or package.ref.rpartition(":")[0], package.ref, package.manifest, package.files(),
                     package.entries, package.attachments(), why=f"pulled from {package.ref} in {source.name}",
                     who=who, replace=replace, other=None)  # fmt: skip


def is_package(place: str) -> bool:
    """Return whether ``place`` names a package file rather than a registry."""
    return "://" not in place and place.endswith(SUFFIX)


def _copy(
    target: Registry,
    name: str,
    origin: str,
    manifest: Any,
    files: Source,
    entries: dict[str, dict[str, Any]],
    attachments: Source,
    *,
    why: str,
    who: str | None,
    replace: bool,
    other: Registry | None,
) -> Transfer:
    from cilseg.registry.intake import Extras, take_in, wanted_extras

    check_name(name)
    if other is not None and other.address == target.address:
        raise ConflictError(f"{target.url} is both source and target; name another registry, or a file ending in .tar.")
    target.make()
    extras = Extras(entries, attachments, replace)
    here = Version(name, 0, manifest.digest, "", store=target.store)
    wanted = wanted_extras(target, here, extras)
    version = take_in(
        target, name, files, manifest, who=who or user_name(), why=why, extras=extras, progress=target.progress
    )
    now = target.store.attachments(version)
    kept = tuple(n for n, entry in entries.items() if n in now and now[n].sha256 != entry["sha256"])
    return Transfer(origin, version.ref, version.digest, tuple(wanted), kept)


def _entries(version: Version) -> dict[str, dict[str, Any]]:
    """Return the sidecar entries of a version's attachments."""
    source = version.store.attachment_source(version)
    return {
        name: sidecar_entry(
            name,
            digest=version.digest,
            sha256=attachment.sha256,
            size_bytes=source.size(name),
            kind=attachment.kind,
            metadata=dict(attachment.metadata),
        )
        for name, attachment in version.store.attachments(version).items()
    }
