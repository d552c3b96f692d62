"""What every runtime offers: run a batch, say what ran. And the graph contract, which each checks on opening."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cilseg.errors import ArtifactError, CilsegError, InputError

AUTO: Final = "auto"
ONNXRUNTIME: Final = "onnxruntime"
ONNXRUNTIME_CUDA: Final = "onnxruntime-cuda"
OPENVINO: Final = "openvino"
TENSORRT: Final = "tensorrt"
BACKENDS: Final = (ONNXRUNTIME, ONNXRUNTIME_CUDA, OPENVINO, TENSORRT)
EMBEDDED_MANIFEST: Final = "cilseg.manifest"
"""Key of the ONNX metadata that holds classes, preprocessing, lineage and precision as JSON."""
INPUT: Final = "image"
_TYPES: Final = {"image": "uint8", "mask": "uint8", "confidence": "float32", "logits": "float32"}
_RANKS: Final = {"image": 4, "mask": 3, "confidence": 3, "logits": 4}

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class BackendInfo:
    """What runs a model, for logs, reports and benchmark rows."""

    backend: str
    """One of :data:`BACKENDS`."""
    version: str
    precision: str
    """Of the file: ``float32``, ``float16``, ``int8`` ..."""
    arithmetic: str
    """What this runtime was told about precision, for example ``INFERENCE_PRECISION_HINT=f32``."""
    device: str
    threads: int | None
    """Threads of one call; ``None`` where the runtime chooses and does not tell."""
    reason: str
    """Why this runtime was taken: named by the caller, or what ``auto`` found."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Backend(Protocol):
    """A loaded model. Threads may share it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs: ``mask`` and perhaps ``confidence`` and ``logits``."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own key/value texts (``cilseg.manifest`` ...)."""
        ...

    def run(self, images: npt.NDArray[np.uint8], outputs: Sequence[str] | None = None) -> Outputs:
        """Answer ``(N, H, W, 3)`` uint8 RGB with the named outputs (all by default), shaped as in the graph contract.

        Raises:
            InputError: not ``(N, H, W, 3)`` uint8, an unknown output, or a size outside the engine's profile.
            CilsegError: the runtime failed, for example out of memory.
        """
        ...

    def describe(self) -> BackendInfo:
        """Say what runs."""
        ...


def check_images(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the batch as one block of memory.

    Raises:
        InputError: not ``(N, H, W, 3)`` uint8, or empty.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or images.size == 0:
        raise InputError(f"A batch is (N, H, W, 3) uint8 and not empty, got {images.shape} {images.dtype}.")
    return np.ascontiguousarray(images)


def wanted_outputs(outputs: Sequence[str] | None, available: Sequence[str], *, name: str) -> tuple[str, ...]:
    """Return the outputs to compute.

    Raises:
        InputError: the model does not have one of them.
    """
    if outputs is None:
        return tuple(available)
    missing = [o for o in outputs if o not in available]
    if missing:
        raise InputError(
            f"{name} has no output {', '.join(missing)}, it has {', '.join(available)}. Export it again with: "
            "cilseg export REF --confidence --logits"
        )
    return tuple(outputs)


def check_contract(
    inputs: Mapping[str, tuple[str, int]], outputs: Mapping[str, tuple[str, int]], *, name: str
) -> tuple[str, ...]:
    """Compare names, types and ranks (``{"image": ("uint8", 4)}``) with the graph contract; return the outputs.

    Raises:
        ArtifactError: another input or output than the contract's.
    """
    fits = dict(inputs) == {INPUT: (_TYPES[INPUT], _RANKS[INPUT])} and "mask" in outputs
    fits = fits and all(outputs[o] == (_TYPES.get(o), _RANKS.get(o)) for o in outputs)
    if not fits:
        raise ArtifactError(
            f"{name}: not a cilseg graph. Expected input image uint8 (N, H, W, 3) and output mask uint8 (N, H, W), "
            f"got inputs {dict(inputs)} and outputs {dict(outputs)}. Export the model with: cilseg export REF"
        )
    return tuple(outputs)


def precision_of(metadata: Mapping[str, str]) -> str:
    """Return the precision that a file says it has; ``unknown`` where it says nothing."""
    try:
        return str(json.loads(metadata[EMBEDDED_MANIFEST])["precision"])
    except (KeyError, TypeError, ValueError):
        return "unknown"


def failed(name: str, backend: str, images: npt.NDArray[np.uint8], exc: Exception) -> CilsegError:
    """Return the error of a run that the runtime broke off."""
    batch, height, width = images.shape[:3]
    return CilsegError(
        f"{name}: {backend} failed on {batch} image(s) of {width} x {height} px ({exc}). Try smaller images, or export "
        "the model again."
    )


def cannot_load(name: str, runtime: str, version: str, exc: Exception) -> ArtifactError:
    """Return the error of a model that the runtime does not accept."""
    return ArtifactError(f"{name}: {runtime} cannot load the model ({runtime} {version}: {exc}). Export it again.")
