"""OpenVINO on the CPU, computing in float32 (INT8 files: in INT8, and in float32 where the file is not quantised)."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import MissingDependencyError
from cilseg_serve.backends.base import (
    INPUT,
    OPENVINO,
    BackendInfo,
    Outputs,
    cannot_load,
    check_contract,
    check_images,
    failed,
    precision_of,
    wanted_outputs,
)
from cilseg_serve.backends.onnx_metadata import metadata_props

PRECISION = "INFERENCE_PRECISION_HINT"
_TYPES = {"u8": "uint8", "f32": "float32"}
FIXED_AFTER = 50
"""Calls of one shape after which the model is compiled once more, for this shape alone: same answers, less to work out
in every call. Compiling takes as long as opening the model does."""
MAX_FIXED = 2
"""Shapes with a model of their own; each takes about as much memory as the model itself. The least used gives way."""
_SHAPES_COUNTED = 1024
_LOGGER = logging.getLogger(__name__)


class OpenVinoBackend:
    """An ONNX model in OpenVINO.

    OpenVINO's own default precision depends on the processor (bfloat16 where it has it), which changes answers; here
    it is always float32.

    Args:
        model: the file, or its bytes.
        name: how messages call it.
        threads: of one call; ``None`` leaves it to OpenVINO.
        reason: why this runtime was taken.

    Raises:
        MissingDependencyError: openvino is not installed.
        ArtifactError: no ONNX model, not of the graph contract, or OpenVINO did not take the precision.
    """

    def __init__(self, model: bytes | Path, *, name: str, threads: int | None = None, reason: str) -> None:
        openvino = _import()
        self._name, self._reason = name, reason
        self._version = str(openvino.__version__).split("-")[0]
        data = model if isinstance(model, bytes) else model.read_bytes()
        settings: dict[str, Any] = {PRECISION: "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._settings = settings
        try:
            self._core = openvino.Core()
            self._model = self._core.read_model(data)
            compiled = self._core.compile_model(self._model, "CPU", settings)
        except Exception as exc:  # plain RuntimeErrors from C++
            raise cannot_load(name, "OpenVINO", self._version, exc) from exc
        self._arithmetic = f"{PRECISION}={_short(compiled.get_property(PRECISION))}"
        if self._arithmetic != f"{PRECISION}=f32":
            raise cannot_load(name, "OpenVINO", self._version, ValueError(f"it insists on {self._arithmetic}"))
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._device = str(compiled.get_property("EXECUTION_DEVICES")[0]).casefold()
        self._outputs = check_contract(_signature(compiled.inputs), _signature(compiled.outputs), name=name)
        self._metadata = metadata_props(data)
        self._any_shape = _Requests(compiled)
        self._fixed: OrderedDict[tuple[int, ...], _Requests] = OrderedDict()
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._may_fix = True
        self._lock = threading.Lock()

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
            return self._requests(batch.shape).run(batch, wanted)
        except Exception as exc:  # as above
            raise failed(self._name, "OpenVINO", batch, exc) from exc

    def describe(self) -> BackendInfo:
        return BackendInfo(
            backend=OPENVINO,
            version=self._version,
            precision=precision_of(self._metadata),
            arithmetic=self._arithmetic,
            device=self._device,
            threads=self._threads,
            reason=self._reason,
        )

    def _requests(self, shape: tuple[int, ...]) -> _Requests:
        """Return what answers batches of a shape; the call that finds it used often enough compiles a model for it."""
        with self._lock:
            fixed = self._fixed.get(shape)
            if fixed is not None:
                self._fixed.move_to_end(shape)
                return fixed
            self._calls[shape] += 1
            if not self._may_fix or self._calls[shape] < FIXED_AFTER:
                if len(self._calls) > _SHAPES_COUNTED:
                    self._calls.clear()
                return self._any_shape
            self._may_fix = False  # one at a time
            del self._calls[shape]
        try:
            model = self._model.clone()
            model.reshape({INPUT: list(shape)})
            fixed = _Requests(self._core.compile_model(model, "CPU", self._settings))
        except Exception as exc:  # as above; what answers any shape still does
            _LOGGER.warning("%s: OpenVINO has no model for the shape %s alone (%s).", self._name, shape, exc)
            return self._any_shape
        _LOGGER.debug("%s: OpenVINO has a model of its own for the shape %s.", self._name, shape)
        with self._lock:
            self._fixed[shape] = fixed
            if len(self._fixed) > MAX_FIXED:
                self._fixed.popitem(last=False)
            self._may_fix = True
        self._any_shape.forget()  # buffers of this shape's size
        return fixed


class _Requests:
    """Inference requests of a compiled model; each serves one thread at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._ports = {port.any_name: port for port in compiled.outputs}
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, batch: npt.NDArray[np.uint8], outputs: Sequence[str]) -> Outputs:
        with self._lock:
            request = self._idle.pop() if self._idle else None
        request = request or self._compiled.create_infer_request()
        request.infer({INPUT: batch}, share_inputs=True, share_outputs=True)
        # The request's memory is written again by the next call.
        found = {o: np.array(request.get_tensor(self._ports[o]).data) for o in outputs}
        with self._lock:  # one that failed is not lent again
            self._idle.append(request)
        return found

    def forget(self) -> None:
        """Give back the memory of requests that nobody uses; later ones are made anew."""
        with self._lock:
            self._idle.clear()


def _import() -> Any:
    try:
        import openvino
    except ImportError as exc:
        raise MissingDependencyError(
            f"Running models with OpenVINO needs the package openvino ({exc}). Install it with: "
            "pip install 'cilseg[openvino]'"
        ) from exc
    return openvino


def _signature(ports: Sequence[Any]) -> dict[str, tuple[str, int]]:
    return {
        p.any_name: (_TYPES.get(_short(p.element_type), _short(p.element_type)), p.partial_shape.rank.get_length())
        for p in ports
    }


def _short(element_type: Any) -> str:
    """Return ``f32`` for OpenVINO's type of that name (its text is ``<Type: 'float32'>``)."""
    name = getattr(element_type, "get_type_name", None)
    return str(name() if name is not None else element_type)
