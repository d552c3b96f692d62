"""A TensorRT engine on disk: the engine, and a sidecar ``FILE.json`` that says what it was built from and for.

The engine file is exactly what TensorRT wrote, so that other tools (Triton, trtexec) load it too. The sidecar of an
attachment in the registry holds the same record under ``metadata.engine``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cilseg.bundle import hash_file, write_file_atomically
from cilseg.errors import ArtifactError, NotExportedError, NotFoundError

SCHEMA: Final = "cilseg.engine/1"
SUFFIX: Final = ".plan"
_BUILD = "Build one for this machine with: cilseg export REF --trt"

Shape = tuple[int, int, int]
"""Batch, height, width."""


class Profile(BaseModel):
    """The sizes an engine accepts, by name; ``opt`` is the one it is tuned for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not all(1 <= a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"sizes grow from min over opt to max, from 1 on; got {self}")
        return self

    def accepts(self, shape: Shape) -> bool:
        return all(a <= n <= b for a, n, b in zip(self.min, shape, self.max, strict=True))

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('x'.join(map(str, s)) for s in (self.min, self.opt, self.max))})"


class EngineRecord(BaseModel):
    """What an engine was built from and for."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["cilseg.engine/1"] = Field(default=SCHEMA, alias="schema")
    onnx_sha256: str
    """Hash of the ONNX file, which holds the weights."""
    tensorrt: str
    compute_capability: str
    """Of the GPU it was built on, for example ``9.0``."""
    gpu: str
    precision: str
    profile: Profile
    version_compatible: bool = False
    """Whether later TensorRT releases of the same major version may run it."""
    hardware: Literal["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"] = "NONE"
    """TensorRT's hardware compatibility level."""
    key: str = ""
    """Derived from all of the above: equal keys, equal engines."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """``metadata_props`` of the ONNX file; an engine has no place for them."""

    @model_validator(mode="after")
    def _with_key(self) -> Self:
        key = engine_key(self)
        if self.key not in ("", key):
            raise ValueError(f"its key {self.key} does not belong to what it says, which has {key}")
        object.__setattr__(self, "key", key)
        return self

    @property
    def file_name(self) -> str:
        """File name that tells engines apart, for example ``model-float16-trt10.16.1.11-sm90-single-1a2b3c4d.plan``."""
        architecture = self.compute_capability.replace(".", "")
        name = f"model-{self.precision}-trt{self.tensorrt}-sm{architecture}-{self.profile.name}"
        return f"{name}-{self.key[:8]}{SUFFIX}"

    def misfit(self, *, tensorrt: str, compute_capability: str) -> str | None:
        """Return why this engine does not run on that TensorRT and GPU; ``None`` if it does."""
        if self.version_compatible:
            fits = _numbers(tensorrt)[:1] == _numbers(self.tensorrt)[:1] and _numbers(tensorrt) >= _numbers(
                self.tensorrt
            )
            if not fits:
                return (
                    f"it was built by TensorRT {self.tensorrt} for that and later {_numbers(self.tensorrt)[0]}.x "
                    + (f"releases, this is {tensorrt}")
                )
        elif tensorrt != self.tensorrt:
            return f"it was built by TensorRT {self.tensorrt}, this is {tensorrt}"
        if self.hardware == "AMPERE_PLUS":
            if _numbers(compute_capability) < (8, 0):
                return f"it runs on GPUs of compute capability 8.0 and later, this one has {compute_capability}"
        elif compute_capability != self.compute_capability:
            return (
                f"it was built for compute capability {self.compute_capability} ({self.gpu}), this GPU has "
                f"{compute_capability}"
            )
        return None


def engine_key(record: EngineRecord) -> str:
    """Return the cache key: a hash of weights, TensorRT version, compute capability, precision, profile and flags."""
    parts = {
        "onnx": record.onnx_sha256,
        "tensorrt": record.tensorrt,
        "compute_capability": record.compute_capability,
        "precision": record.precision,
        "profile": record.profile.model_dump(mode="json"),
        "version_compatible": record.version_compatible,
        "hardware": record.hardware,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def sidecar_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def write_engine(folder: Path, data: bytes, record: EngineRecord) -> Path:
    """Write an engine and its sidecar into ``folder``, sidecar last; return the engine's path."""
    path = folder / record.file_name
    write_file_atomically(path, data)
    sidecar = {
        "schema": SCHEMA,
        "file_name": path.name,
        "sha256": hash_file(path),
        "size_bytes": len(data),
        "engine": record.model_dump(mode="json", by_alias=True),
    }
    write_file_atomically(sidecar_path(path), (json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def read_engine(path: Path) -> tuple[bytes, EngineRecord]:
    """Return an engine's bytes, compared with the hash in its sidecar, and the record there.

    Raises:
        NotFoundError: no such engine.
        ArtifactError: no sidecar, one that cannot be read, or one of another file.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such engine. {_BUILD}")
    record, sha256 = _read_sidecar(path)
    data = path.read_bytes()
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise ArtifactError(
            f"{path} and its sidecar disagree: the file has {actual[:19]}..., the sidecar says {sha256[:19]}.... "
            f"One of them was replaced or cut short. {_BUILD}"
        )
    return data, record


def read_record(path: Path) -> EngineRecord:
    """Return what the sidecar of the engine ``path`` says, without looking at the engine.

    Raises:
        ArtifactError: as :func:`read_engine`.
    """
    return _read_sidecar(path)[0]


def _read_sidecar(path: Path) -> tuple[EngineRecord, str]:
    sidecar = sidecar_path(path)
    try:
        payload: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
        engine = payload["engine"] if "engine" in payload else payload["metadata"]["engine"]
        return EngineRecord.model_validate(engine), str(payload["sha256"])
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: its sidecar {sidecar.name} is missing, so nobody can tell what the engine was built for. {_BUILD}"
        ) from None
    except (ValidationError, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{sidecar} cannot be read ({exc}). {_BUILD}") from exc


def find_engine(folder: Path, name: str) -> Path:
    """Return the engine in ``folder`` that runs on the TensorRT and GPU of this machine, the latest one built.

    Raises:
        NotExportedError: there is no engine at all.
        ArtifactError: there are some, but none for this machine: all of them are named with the reason.
        MissingDependencyError: TensorRT or CUDA is not installed.
        CilsegError: there is no GPU.
    """
    engines = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
    if not engines:
        raise NotExportedError(f"{name} has no TensorRT engine. {_BUILD}")
    from cilseg_serve.backends.cudart import open_device
    from cilseg_serve.backends.tensorrt_runtime import import_tensorrt

    version, device = import_tensorrt().__version__, open_device()
    misfits = []
    for path in engines:
        try:
            reason = read_record(path).misfit(tensorrt=version, compute_capability=device.compute_capability)
        except ArtifactError as exc:
            reason = str(exc)
        if reason is None:
            return path
        misfits.append(f"  - {path.name}: {reason}")
    head = f"{name}: none of its {len(engines)} engines runs on TensorRT {version} and {device.name}."
    raise ArtifactError("\n".join([head, *misfits, _BUILD]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
