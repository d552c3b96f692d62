"""Choose a runtime and start it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection
from pathlib import Path

from cilseg.errors import CilsegError, InputError, NotFoundError, ParityError, did_you_mean
from cilseg_serve.backends.base import (
    AUTO,
    BACKENDS,
    ONNXRUNTIME,
    ONNXRUNTIME_CUDA,
    OPENVINO,
    TENSORRT,
    Backend,
)

ENGINE_SUFFIX = ".plan"

_log = logging.getLogger(__name__)


def check_backend(backend: str) -> str:
    """Return ``backend`` if there is one of that name (``auto`` included).

    Raises:
        InputError: there is none.
    """
    names = (AUTO, *BACKENDS)
    if backend not in names:
        hint = did_you_mean(backend, names)
        raise InputError(f"There is no backend {backend!r}.{hint} Backends: {', '.join(names)}.")
    return backend


def open_session(
    model: bytes | Path,
    *,
    backend: str = AUTO,
    name: str | None = None,
    threads: int | None = None,
    verified: Collection[str] | None = None,
    allow_unverified: bool = False,
) -> Backend:
    """Load a model into a runtime.

    ``auto`` takes the first of these that works here: CUDA (onnxruntime), OpenVINO, onnxruntime; a TensorRT engine
    runs in TensorRT. It logs which, and why not the ones before; ``describe().reason`` says the same.

    Args:
        model: an ONNX file or its bytes, or a TensorRT engine file (``.plan``, with its sidecar).
        backend: one of ``base.BACKENDS``, or ``auto``.
        name: how messages call the model; default its path.
        threads: of one call; ``None`` leaves the number to the runtime.
        verified: backends on which the model passed its parity check; ``None``: do not ask.
        allow_unverified: take a named backend that is not among them, with a warning. ``auto`` never does.

    Raises:
        InputError: unknown backend, threads below 1, or an engine for a runtime of ONNX models or the reverse.
        NotFoundError: no such file.
        MissingDependencyError: the package of the backend is not installed; the extra is named.
        ArtifactError: the runtime does not take the model, or it is none of the graph contract.
        ParityError: the named backend is not among the verified ones.
        CilsegError: CUDA fell back silently.
    """
    check_backend(backend)
    if threads is not None and threads < 1:
        raise InputError(f"threads is at least 1, got {threads}. Leave it out for one thread per core.")
    if isinstance(model, Path) and not model.is_file():
        raise NotFoundError(f"{model} does not exist. Export the model first: cilseg export")
    label = name or (str(model) if isinstance(model, Path) else "the model")
    is_engine = isinstance(model, Path) and model.suffix == ENGINE_SUFFIX
    if is_engine and backend not in (AUTO, TENSORRT):
        raise InputError(f"{label} is a TensorRT engine; {backend} runs ONNX models. Use --backend tensorrt.")
    if backend == TENSORRT and not is_engine:
        raise InputError(
            f"{label} is no TensorRT engine (a {ENGINE_SUFFIX} file). Build one with: cilseg export REF --trt"
        )
    if backend == AUTO:
        session = _automatic(model, label, threads=threads, verified=verified)
        _log.info("%s runs on %s: %s", label, session.describe().backend, session.describe().reason)
        return session
    if verified is not None and backend not in verified:
        text = (
            f"{label} was not compared with the trained model on {backend} (it was on "
            f"{', '.join(sorted(verified)) or 'no backend'}), so its answers there may differ."
        )
        if not allow_unverified:
            raise ParityError(
                f"{text} Run: cilseg export REF, on a machine with {backend} (or allow it: allow_unverified=True, "
                "--allow-unverified)."
            )
        _log.warning("UNVERIFIED BACKEND: %s", text)
    return _start(backend, model, label, threads=threads, reason="named by the caller")


def _automatic(model: bytes | Path, name: str, *, threads: int | None, verified: Collection[str] | None) -> Backend:
    if isinstance(model, Path) and model.suffix == ENGINE_SUFFIX:
        return _start(TENSORRT, model, name, threads=threads, reason="the file is a TensorRT engine")
    passed_over: list[str] = []
    for backend in (ONNXRUNTIME_CUDA, OPENVINO):
        fault = _fault(backend, verified)
        if fault is None:
            try:
                reason = "; ".join(["the fastest of those here", *passed_over])
                return _start(backend, model, name, threads=threads, reason=reason)
            except CilsegError as exc:
                fault = str(exc)
        passed_over.append(f"not {backend}: {fault}")
    return _start(ONNXRUNTIME, model, name, threads=threads, reason="; ".join(passed_over))


def _fault(backend: str, verified: Collection[str] | None) -> str | None:
    """Return why ``auto`` does not even try ``backend``."""
    if backend == ONNXRUNTIME_CUDA:
        from cilseg_serve.backends.onnx_runtime import cuda_fault

        if (fault := cuda_fault()) is not None:
            return "no onnxruntime with CUDA here" if "CUDA" in fault else fault
    elif importlib.util.find_spec("openvino") is None:
        return "not installed (pip install 'cilseg[openvino]')"
    if verified is not None and backend not in verified:
        return "no passed comparison with the trained model on it (cilseg export compares where it is installed)"
    return None


def _start(backend: str, model: bytes | Path, name: str, *, threads: int | None, reason: str) -> Backend:
    if backend == OPENVINO:
        from cilseg_serve.backends.openvino_runtime import OpenVinoBackend

        return OpenVinoBackend(model, name=name, threads=threads, reason=reason)
    if backend == TENSORRT:
        from cilseg_serve.backends.tensorrt_runtime import TensorRtBackend

        assert isinstance(model, Path)
        return TensorRtBackend(model, name=name, reason=reason)
    from cilseg_serve.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, name=name, cuda=backend == ONNXRUNTIME_CUDA, threads=threads, reason=reason)
