"""Find the exported model of a version and refuse one that is damaged, of another version, or not verified."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilseg.bundle import MANIFEST
from cilseg.errors import ArtifactError, InputError, NotExportedError, ParityError, did_you_mean
from cilseg_serve.backends.base import ONNXRUNTIME, TENSORRT
from cilseg_serve.backends.engine_file import find_engine

if TYPE_CHECKING:
    from cilseg.registry import Registry

ATTACHMENTS = "attachments"
MODEL_FILE = "model.onnx"
MODEL_FILES = {"fp32": MODEL_FILE, "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""Attachment of each precision."""
_AGAIN = "Export it again with: cilseg export REF"
_READ_ATTEMPTS = 4

_log = logging.getLogger(__name__)


def locate(source: str | Path | None, registry: Registry | str | Path | None) -> tuple[Path, str, str | None]:
    """Return the version directory of ``source``, a name for messages, and the digest that the registry recorded.

    A ``Path``, a text with a slash, and a folder that holds a manifest are directories (no digest on record); anything
    else is a registry reference.

    Raises:
        InputError: ``source`` is a file or a malformed reference.
        NotFoundError: the reference names nothing.
    """
    if source is not None:
        if Path(source).is_file():
            raise InputError(f"{source} is a file, expected a bundle folder or a reference (or Segmenter.from_onnx()).")
        if isinstance(source, Path) or "/" in source or os.sep in source or (Path(source) / MANIFEST).is_file():
            return Path(source), str(source), None
    from cilseg.registry import Registry

    opened = registry if isinstance(registry, Registry) else Registry.open(registry)
    version = opened.resolve(source)
    return version.path, version.ref, version.digest


def read_for_backend(
    directory: Path,
    name: str,
    *,
    backend: str,
    digest: str,
    precision: str = "fp32",
    allow_unverified: bool = False,
) -> tuple[bytes | Path, frozenset[str]]:
    """Return the model that ``backend`` runs (the engine's path for TensorRT), and where it passed its parity check.

    Args:
        precision: which of the exported files, a key of ``MODEL_FILES``; TensorRT takes the engine that is there.

    Raises:
        as :func:`read_model`; NotExportedError also when there is no TensorRT engine.
    """
    if backend == TENSORRT:
        path = find_engine(directory / ATTACHMENTS, name)
        record = _read_checked(path, name, digest=digest, allow_unverified=allow_unverified)[1]
        return path, frozenset({TENSORRT}) if _passed(record.get("parity")) else frozenset()
    path = directory / ATTACHMENTS / model_file(precision)
    data, record = _read_checked(path, name, digest=digest, allow_unverified=allow_unverified)
    return data, verified_backends(record)


def model_file(precision: str) -> str:
    """Return the attachment's name of a precision.

    Raises:
        InputError: there is no such precision.
    """
    if precision not in MODEL_FILES:
        raise InputError(
            f"Unknown precision {precision!r}.{did_you_mean(precision, MODEL_FILES)} "
            f"Precisions: {', '.join(MODEL_FILES)}."
        )
    return MODEL_FILES[precision]


def read_model(directory: Path, name: str, *, digest: str, allow_unverified: bool = False) -> bytes:
    """Return the bytes of ``attachments/model.onnx``: those that were hashed are those that will run.

    Args:
        directory: the bundle or version directory.
        name: how messages call it.
        digest: ``sha256:...`` of its manifest, which the sidecar must name.
        allow_unverified: only warn when no parity check was passed.

    Raises:
        NotExportedError: the version has no exported model.
        ArtifactError: no readable sidecar, a hash that differs, or a model of another version.
        ParityError: the parity check is missing or failed.
    """
    return _read_checked(directory / ATTACHMENTS / MODEL_FILE, name, digest=digest, allow_unverified=allow_unverified)[
        0
    ]


def verified_backends(metadata: Mapping[str, Any]) -> frozenset[str]:
    """Return the backends on which the model with this record passed its parity check.

    ``parity.runtime`` names the first, ``backends`` holds the verdicts of the others. A record that names none is of
    onnxruntime.
    """
    others = metadata.get("backends")
    found = {str(n) for n, verdict in (others if isinstance(others, dict) else {}).items() if _passed(verdict)}
    parity = metadata.get("parity")
    if isinstance(parity, dict) and _passed(parity):
        runtime = parity.get("runtime")
        found.add(str(runtime.get("runtime", ONNXRUNTIME)) if isinstance(runtime, dict) else ONNXRUNTIME)
    return frozenset(found)


def _read_checked(path: Path, name: str, *, digest: str, allow_unverified: bool) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of an attachment, hashed and checked against its sidecar, and the sidecar's metadata."""
    data, actual, expected = b"", "", ""
    # The model may be replaced between the two reads; its sidecar announces the new one under "next" meanwhile.
    for _ in range(_READ_ATTEMPTS):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotExportedError(
                f"{name} has no exported model ({path} is missing). Make one with: cilseg export REF"
                + next((f" --precision {p}" for p, f in MODEL_FILES.items() if f == path.name and p != "fp32"), "")
            ) from None
        actual = hashlib.sha256(data).hexdigest()
        entries = _read_sidecar(path.with_name(path.name + ".json"), name)
        expected = entries[0]["sha256"]
        for entry in entries:
            if entry["sha256"] == actual:
                _check_version(entry["version_digest"], name, digest, path.name)
                _check_parity(entry["metadata"].get("parity"), name, allow_unverified=allow_unverified)
                return data, entry["metadata"]
    raise ArtifactError(
        f"{name}: {path} is damaged: {len(data)} bytes with sha256:{actual[:12]}..., expected "
        f"sha256:{expected[:12]}.... {_AGAIN}"
    )


def _read_sidecar(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the entry of the sidecar, then the one it announces, if any; hashes as bare hex."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "sha256": str(entry["sha256"]).removeprefix("sha256:"),
                "version_digest": str(entry["version_digest"]),
                "metadata": dict(entry.get("metadata") or {}),
            }
            for entry in (record, record.get("next"))
            if entry is not None
        ]
    except FileNotFoundError:
        raise ArtifactError(f"{name}: {path.name}, the record of the exported model, is missing. {_AGAIN}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ArtifactError(f"{name}: {path} cannot be read ({exc!r}). {_AGAIN}") from exc


def _check_version(recorded: str, name: str, digest: str, file_name: str) -> None:
    if recorded != digest:
        raise ArtifactError(
            f"{name}: {file_name} was exported from version {recorded[:19]}..., this one is {digest[:19]}.... {_AGAIN}"
        )


def _passed(parity: Any) -> bool:
    return isinstance(parity, dict) and parity.get("passed") is True


def _check_parity(parity: Any, name: str, *, allow_unverified: bool) -> None:
    if _passed(parity):
        return
    state = "failed" if isinstance(parity, dict) and parity.get("passed") is False else "is not on record"
    if not allow_unverified:
        raise ParityError(
            f"{name}: the parity check of its exported model {state}, so it may answer differently from the trained "
            "one. Run: cilseg export REF (or allow an unverified model: allow_unverified=True, --allow-unverified)."
        )
    _log.warning("UNVERIFIED MODEL: %s: the parity check of its exported model %s; masks may be wrong.", name, state)
