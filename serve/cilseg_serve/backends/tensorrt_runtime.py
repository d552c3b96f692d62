"""TensorRT: engines of 10.x and 11.x, one CUDA graph per input size, pinned buffers on the host side.

Written against the names in the real bindings of both majors; not run by us on a GPU yet (docs/tensorrt.md).
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import ArtifactError, CilsegError, InputError, MissingDependencyError
from cilseg_serve.backends.base import (
    INPUT,
    TENSORRT,
    BackendInfo,
    Outputs,
    check_contract,
    check_images,
    failed,
    wanted_outputs,
)
from cilseg_serve.backends.cudart import CudaRuntime
from cilseg_serve.backends.engine_file import read_engine

KEPT_SIZES = 4
"""Input sizes whose buffers and CUDA graph are kept; each holds an execution context of its own."""
_TYPES = {"UINT8": np.uint8, "FLOAT": np.float32}

_log = logging.getLogger(__name__)


def import_tensorrt() -> Any:
    """Return the module ``tensorrt``.

    Raises:
        MissingDependencyError: it is not installed or one of its libraries is not found.
    """
    try:
        import tensorrt
    except ImportError as exc:
        raise MissingDependencyError(
            f"TensorRT is not installed here ({exc}). It needs an NVIDIA GPU and: pip install 'cilseg[tensorrt]'"
        ) from exc
    return tensorrt


@dataclass(frozen=True)
class _Tensor:
    """Buffers of one input or output at one size: addresses, and the pinned one as an array."""

    name: str
    device: int
    pinned: int
    host: npt.NDArray[Any]


@dataclass(frozen=True)
class _Plan:
    """Everything for one input shape: a context with its buffers, and the CUDA graph if one could be captured."""

    context: Any
    image: _Tensor
    outputs: dict[str, _Tensor]
    graph: int | None


class TensorRtBackend:
    """An engine with its sidecar.

    Args:
        path: the engine.
        name: how messages call it.
        reason: why this runtime was taken.

    Raises:
        MissingDependencyError: TensorRT or libcudart is not installed.
        CilsegError: no GPU.
        ArtifactError: sidecar missing or disagreeing, an engine for another GPU or TensorRT version, damaged, or not of
            the graph contract.
    """

    def __init__(self, path: Path, *, name: str, reason: str) -> None:
        data, self.record = read_engine(path)
        trt = import_tensorrt()
        self._trt, self._name, self._reason = trt, name, reason
        self._cuda = CudaRuntime()
        self._device = self._cuda.device()
        misfit = self.record.misfit(tensorrt=trt.__version__, compute_capability=self._device.compute_capability)
        if misfit is not None:
            raise ArtifactError(
                f"{name}: this engine does not run here: {misfit}. Build one on this machine: cilseg export REF --trt"
            )
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        if self.record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such engines carry their own small runtime
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise ArtifactError(
                f"{name}: TensorRT {trt.__version__} cannot load the engine ({len(data)} bytes). Build it again with: "
                "cilseg export REF --trt"
            )
        inputs, outputs = _signatures(trt, self._engine)
        self._outputs = check_contract(inputs, outputs, name=name)
        self._stream = self._cuda.stream()
        self._plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._without_graph: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.record.metadata

    def run(self, images: npt.NDArray[np.uint8], outputs: Sequence[str] | None = None) -> Outputs:
        batch = check_images(images)
        wanted = wanted_outputs(outputs, self._outputs, name=self._name)
        shape = (batch.shape[0], batch.shape[1], batch.shape[2])
        if not self.record.profile.accepts(shape):
            raise InputError(
                f"{self._name}: a batch of {shape[0]} image(s) of {shape[2]} x {shape[1]} px is outside the engine's "
                f"profile {self.record.profile}, given as batch x height x width. Resize it, or build an engine with "
                "another --trt-profile."
            )
        with self._lock:
            try:
                plan = self._plan(batch.shape)
                np.copyto(plan.image.host, batch)
                if plan.graph is None:
                    self._enqueue(plan)
                else:
                    self._cuda.launch(plan.graph, self._stream)
                self._cuda.synchronize(self._stream)
            except CilsegError as exc:
                raise failed(self._name, "TensorRT", batch, exc) from exc
            return {o: plan.outputs[o].host.copy() for o in wanted}

    def describe(self) -> BackendInfo:
        graphs = "CUDA graphs" if self._without_graph is None else f"no CUDA graphs ({self._without_graph})"
        return BackendInfo(
            backend=TENSORRT,
            version=str(self._trt.__version__),
            precision=self.record.precision,
            arithmetic=f"strongly typed, {graphs}",
            device=self._device.name,
            threads=None,
            reason=self._reason,
        )

    def close(self) -> None:
        """Free buffers, graphs and stream; the backend cannot run afterwards."""
        with self._lock:
            while self._plans:
                self._release(self._plans.popitem()[1])
            if self._stream:
                self._cuda.destroy_stream(self._stream)
                self._stream = 0

    def _plan(self, shape: tuple[int, ...]) -> _Plan:
        """Return the plan of ``shape``, made on first use; the one not used longest makes room."""
        if shape in self._plans:
            self._plans.move_to_end(shape)
            return self._plans[shape]
        if len(self._plans) >= KEPT_SIZES:
            self._release(self._plans.popitem(last=False)[1])
        plan = self._make_plan(shape)
        self._plans[shape] = plan
        return plan

    def _make_plan(self, shape: tuple[int, ...]) -> _Plan:
        context = self._engine.create_execution_context()
        if context is None:
            raise CilsegError("no memory for an execution context")
        if not context.set_input_shape(INPUT, shape):
            raise CilsegError(f"the engine does not take the shape {shape}")
        tensors: dict[str, _Tensor] = {}
        try:
            for name in (INPUT, *self._outputs):
                dtype = np.dtype(_TYPES[self._engine.get_tensor_dtype(name).name])
                tensors[name] = self._allocate(name, tuple(context.get_tensor_shape(name)), dtype)
                if not context.set_tensor_address(name, tensors[name].device):
                    raise CilsegError(f"the engine does not take a buffer for {name}")
            answers = {o: tensors[o] for o in self._outputs}
            plan = _Plan(context, tensors[INPUT], answers, None)
            # TensorRT allocates lazily: one run before the capture, as its documentation asks for.
            self._enqueue(plan)
            self._cuda.synchronize(self._stream)
            return _Plan(context, tensors[INPUT], answers, self._capture(plan))
        except BaseException:
            for tensor in tensors.values():
                self._free(tensor)
            raise

    def _capture(self, plan: _Plan) -> int | None:
        """Capture copies and inference as one CUDA graph; ``None`` where this engine cannot be captured."""
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(plan)
            finally:
                graph = self._cuda.end_capture(self._stream)
        except CilsegError as exc:
            self._without_graph = str(exc)
            _log.info("%s runs without a CUDA graph: %s", self._name, exc)
            return None
        return graph

    def _enqueue(self, plan: _Plan) -> None:
        image = plan.image
        self._cuda.to_device(image.device, image.pinned, image.host.nbytes, self._stream)
        if not plan.context.execute_async_v3(self._stream):
            raise CilsegError("execute_async_v3 refused")
        for tensor in plan.outputs.values():
            self._cuda.to_host(tensor.pinned, tensor.device, tensor.host.nbytes, self._stream)

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Tensor:
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        if size_bytes <= 0:
            raise CilsegError(f"the engine gives {name} the shape {shape}")
        device = self._cuda.malloc(size_bytes)
        try:
            pinned = self._cuda.malloc_pinned(size_bytes)
        except CilsegError:
            self._cuda.free(device)
            raise
        memory = (ctypes.c_uint8 * size_bytes).from_address(pinned)
        return _Tensor(name, device, pinned, np.ctypeslib.as_array(memory).view(dtype).reshape(shape))

    def _free(self, tensor: _Tensor) -> None:
        self._cuda.free(tensor.device)
        self._cuda.free_pinned(tensor.pinned)

    def _release(self, plan: _Plan) -> None:
        if plan.graph is not None:
            self._cuda.destroy_graph(plan.graph)
        for tensor in (plan.image, *plan.outputs.values()):
            self._free(tensor)


def _signatures(trt: Any, engine: Any) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
    """Return name -> (type, rank) of inputs and of outputs."""
    found: dict[str, dict[str, tuple[str, int]]] = {"INPUT": {}, "OUTPUT": {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        type_name = np.dtype(_TYPES[kind]).name if kind in _TYPES else kind
        mode = "INPUT" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "OUTPUT"
        found[mode][name] = (type_name, len(tuple(engine.get_tensor_shape(name))))
    return found["INPUT"], found["OUTPUT"]
