"""onnxruntime, on the CPU or on a CUDA device."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import CilsegError, MissingDependencyError
from cilseg_serve.backends.base import (
    INPUT,
    ONNXRUNTIME,
    ONNXRUNTIME_CUDA,
    BackendInfo,
    Outputs,
    cannot_load,
    check_contract,
    check_images,
    failed,
    precision_of,
    wanted_outputs,
)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {"use_tf32": "0"}
_SETTINGS = {ONNXRUNTIME: "as in the file", ONNXRUNTIME_CUDA: "use_tf32=0"}
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}

_log = logging.getLogger(__name__)


class OnnxRuntimeBackend:
    """An ONNX model in onnxruntime.

    Args:
        model: the file, or its bytes.
        name: how messages call it.
        cuda: run on the first CUDA device instead of the CPU.
        threads: of one call; ``None`` leaves it to onnxruntime (one per core).
        reason: why this runtime was taken.

    Raises:
        MissingDependencyError: onnxruntime, or its CUDA build, is not installed.
        CilsegError: CUDA was asked for, and onnxruntime went on without it.
        ArtifactError: no ONNX model, or not of the graph contract.
    """

    def __init__(
        self, model: bytes | Path, *, name: str, cuda: bool = False, threads: int | None = None, reason: str
    ) -> None:
        onnxruntime = _import()
        self._name, self._reason, self._threads = name, reason, threads
        self._backend = ONNXRUNTIME_CUDA if cuda else ONNXRUNTIME
        self._version = str(onnxruntime.__version__)
        if cuda:
            _require_cuda_build(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # one plan per image size: more memory, and no faster
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted: list[Any] = [(CUDA, _CUDA_OPTIONS), CPU] if cuda else [CPU]
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=wanted
            )
        except Exception as exc:  # onnxruntime has no common base class for its errors
            raise cannot_load(name, "onnxruntime", self._version, exc) from exc
        self.providers = tuple(self._session.get_providers())
        _check_providers(self.providers, name, cuda=cuda)
        self._outputs = check_contract(
            _signature(self._session.get_inputs()), _signature(self._session.get_outputs()), name=name
        )
        self._metadata = dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    def run(self, images: npt.NDArray[np.uint8], outputs: Sequence[str] | None = None) -> Outputs:
        batch = check_images(images)
        wanted = wanted_outputs(outputs, self._outputs, name=self._name)
        try:
            answers = self._session.run(list(wanted), {INPUT: batch})
        except Exception as exc:  # as above
            raise failed(self._name, "onnxruntime", batch, exc) from exc
        return dict(zip(wanted, answers, strict=True))

    def describe(self) -> BackendInfo:
        return BackendInfo(
            backend=self._backend,
            version=self._version,
            precision=precision_of(self._metadata),
            arithmetic=_SETTINGS[self._backend],
            device="cuda" if self._backend == ONNXRUNTIME_CUDA else "cpu",
            threads=self._threads,
            reason=self._reason,
        )


def cuda_fault() -> str | None:
    """Return why onnxruntime has no CUDA here as far as its build tells; ``None`` when opening a session must show."""
    if "onnxruntime" not in sys.modules and not _has_cuda_library():
        return "onnxruntime is not installed, or was built without CUDA"
    try:
        onnxruntime = _import()
        _require_cuda_build(onnxruntime)
    except MissingDependencyError as exc:
        return str(exc)
    return None


def _has_cuda_library() -> bool:
    """Look for the CUDA provider among onnxruntime's files: importing it only to ask costs time and memory."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec is not None else None
    return any(True for folder in folders or () for _ in Path(folder, "capi").glob("*onnxruntime_providers_cuda.*"))


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependencyError(
            f"Running models with onnxruntime needs the package onnxruntime ({exc}). Install it with: pip install "
            "'cilseg[cpu]' (or 'cilseg[gpu]' instead of it, on a machine with CUDA)"
        ) from exc
    return onnxruntime


def _require_cuda_build(onnxruntime: Any) -> None:
    found = list(onnxruntime.get_available_providers())
    if CUDA not in found:
        raise MissingDependencyError(
            f"This onnxruntime {onnxruntime.__version__} was built without CUDA (it has {', '.join(found)}). Replace "
            "it: pip uninstall onnxruntime, then pip install 'cilseg[gpu]' (the two share a folder)"
        )
    # The CUDA libraries that torch or the extra brought are found this way; older versions do not have it.
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        try:
            preload()
        except Exception as exc:  # what is missing shows when the session opens
            _log.debug("onnxruntime.preload_dlls: %s", exc)


def _check_providers(providers: Sequence[str], name: str, *, cuda: bool) -> None:
    if cuda and CUDA not in providers:
        raise CilsegError(
            f"onnxruntime fell back silently: asked for CUDA, it runs {name} on {', '.join(providers)}. The CUDA or "
            "cuDNN libraries do not fit, or there is no GPU: check nvidia-smi, or take --backend onnxruntime."
        )
    if not cuda and list(providers) != [CPU]:
        raise CilsegError(f"onnxruntime runs {name} on {list(providers)}, asked for {[CPU]}. Install another build.")


def _signature(values: Sequence[Any]) -> dict[str, tuple[str, int]]:
    return {v.name: (_TYPES.get(v.type, v.type), len(v.shape)) for v in values}
