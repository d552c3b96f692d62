"""The bundle: the directory that travels, and its manifest.

A bundle directory holds ``manifest.json``, ``checkpoint.safetensors``, ``labels.txt``, ``README.md`` and whatever else
the manifest lists under ``files`` (a copy of the tag list, the training log). The manifest is final once the version
is registered; things made later are attachments (``cilseg.registry``).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, NotFoundError

SCHEMA: Final = "cilseg.bundle/1"
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
LABELS = "labels.txt"
MODEL_CARD = "README.md"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """Everything between a decoded RGB image and the network.

    ``mean`` and ``std`` are on the 0-255 scale and live inside the exported graph. ``short_side_px`` is the only step
    outside it: the image is resized (bilinear, antialiased) so that its shorter side has this length; ``None`` leaves
    the image at its own size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side_px: int | None = Field(default=None, ge=16, le=8192)


class Architecture(_Frozen):
    """What is needed to build the network again before its weights are loaded."""

    backbone: str
    output_stride: int
    head_channels: int
    head_dilations: tuple[int, ...]
    classes_per_step: tuple[int, ...]
    classifier: Literal["linear", "cosine"] = "linear"
    """``cosine``: scores are scaled cosines and the head ends without an activation (PIFS)."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write nothing for the usual classifier: the digests of versions from before the field stay what they are."""
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if (k, v) != ("classifier", "linear")}


class GateSet(_Frozen):
    """Which annotated images judge the model: a data folder, its split, and the classes annotated there."""

    root: str
    split: str
    layout: str = "auto"
    label_names: dict[int, str]
    classes: tuple[str, ...]
    ids_sha256: str


class Manifest(_Frozen):
    """``manifest.json``: schema, classes, architecture, preprocessing, lineage and the hash of every file."""

    schema_: Literal["cilseg.bundle/1"] = Field(default=SCHEMA, alias="schema")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    classes: list[dict[str, Any]]
    architecture: Architecture
    preprocessing: Preprocessing
    method: str
    parent: str | None = None
    """Digest (``sha256:...``) of the version this one was trained from."""
    config: dict[str, Any] = Field(default_factory=dict)
    seed: int
    created_at: str
    environment: dict[str, str] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    """Fingerprint of the training data: counts and hashes, no paths inside images."""
    gate_set: GateSet | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """File name -> ``sha256:...`` for every file beside the manifest."""

    @property
    def class_set(self) -> ClassSet:
        return ClassSet.from_json(self.classes)

    def canonical_json(self) -> bytes:
        """Return the bytes whose hash is the version's digest: sorted keys, no blanks, UTF-8."""
        payload = self.model_dump(mode="json", by_alias=True)
        return json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """``sha256:...`` of :meth:`canonical_json`; covers the weights through ``files``."""
        return "sha256:" + hashlib.sha256(self.canonical_json()).hexdigest()


def hash_file(path: Path) -> str:
    """Return ``sha256:...`` of a file, read in blocks."""
    with path.open("rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()


def write_file_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path``, fsync, then rename over it.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        Path(temp).replace(path)
        fsync_directory(path.parent)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def fsync_directory(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file of ``directory``, put the hashes into ``manifest`` and write it; return the final manifest."""
    files = {
        p.relative_to(directory).as_posix(): hash_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    final = manifest.model_copy(update={"files": files})
    text = json.dumps(final.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
    write_file_atomically(directory / MANIFEST, text.encode())
    return final


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle directory.

    Raises:
        NotFoundError: no manifest there.
        ArtifactError: not JSON, another schema, or fields missing.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise NotFoundError(
            f"{directory} is no bundle: {MANIFEST} is missing. Give a bundle directory or a registry reference."
        )
    return parse_manifest(path.read_bytes(), where=str(path))


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Check the text of a ``manifest.json``; ``where`` names it in messages.

    Raises:
        ArtifactError: not JSON, another schema, or fields missing.
    """
    try:
        return Manifest.model_validate(json.loads(data))
    except (ValidationError, ValueError) as exc:
        raise ArtifactError(
            f"{where} cannot be read: {exc}. It was edited by hand or written by another version of cilseg."
        ) from exc


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Compare every file listed in ``manifest`` with its hash.

    Raises:
        ArtifactError: a file is missing, truncated or changed; all of them are named.
    """
    faults = []
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (actual := hash_file(path)) != expected:
            faults.append(f"{name} has {actual[:19]}..., expected {expected[:19]}... ({path.stat().st_size} bytes)")
    if faults:
        raise ArtifactError(
            f"Bundle {directory} is damaged: {'; '.join(faults)}. Copy it again from where it came, or retrain."
        )
