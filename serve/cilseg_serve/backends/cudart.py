"""The few calls of the CUDA runtime that the TensorRT backend needs, by ctypes on libcudart.

ctypes rather than cuda-python: TensorRT brings libcudart anyway, cuda-python would have to match its major version and
changed its module names between 12 and 13, and the fifteen functions below have kept their signatures since CUDA 12.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cilseg.errors import CilsegError, MissingDependencyError

_MAJORS: Final = (13, 12)
_PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiate": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}
FUNCTIONS: Final = (*_PROTOTYPES, "cudaGetErrorString")
"""Everything that is called; a test compares it with the symbols of the real libraries."""
_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_TO_DEVICE, _TO_HOST = 1, 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS = 75, 76, 16


@dataclass(frozen=True)
class Device:
    """The GPU of this process (number 0 of those that are visible)."""

    name: str
    compute_capability: str


class CudaRuntime:
    """libcudart with checked calls.

    Raises:
        MissingDependencyError: the library is not found or lacks a function.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _load() if library is None else library
        missing = [name for name in FUNCTIONS if not hasattr(self._library, name)]
        if missing:
            raise MissingDependencyError(
                f"libcudart lacks {', '.join(missing)}. Install CUDA 12 or later: pip install 'cilseg[tensorrt]'"
            )
        for name, arguments in _PROTOTYPES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, c_int
        self._library.cudaGetErrorString.argtypes = (c_int,)
        self._library.cudaGetErrorString.restype = c_char_p

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.cudaGetErrorString(status)
            raise CilsegError(f"CUDA: {name} failed with {status} ({text.decode() if text else 'unknown'}).")

    def device(self) -> Device:
        """Return the first device.

        Raises:
            CilsegError: there is none, or the driver does not fit.
        """
        count = c_int(0)
        advice = "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or take --backend onnxruntime."
        try:
            self._call("cudaGetDeviceCount", byref(count))
        except CilsegError as exc:
            raise CilsegError(f"There is no usable NVIDIA GPU here: {exc} {advice}") from exc
        if count.value == 0:
            raise CilsegError(f"There is no NVIDIA GPU here (CUDA sees 0 devices). {advice}")
        major, minor, processors = (
            self._attribute(which) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS)
        )
        # The name would need cudaGetDeviceProperties, whose structure differs between CUDA releases.
        return Device(f"a GPU of compute capability {major}.{minor} ({processors} SMs)", f"{major}.{minor}")

    def _attribute(self, which: int) -> int:
        value = c_int(0)
        self._call("cudaDeviceGetAttribute", byref(value), which, 0)
        return value.value

    def stream(self) -> int:
        return self._made("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def malloc(self, size_bytes: int) -> int:
        return self._made("cudaMalloc", size_bytes)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def malloc_pinned(self, size_bytes: int) -> int:
        return self._made("cudaHostAlloc", size_bytes, 0)

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", device, host, size_bytes, _TO_DEVICE, stream)

    def to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", host, device, size_bytes, _TO_HOST, stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return the executable graph of what was captured; the graph itself is released."""
        graph = self._made("cudaStreamEndCapture", stream, pointer_last=True)
        try:
            return self._made("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _made(self, name: str, *arguments: Any, pointer_last: bool = False) -> int:
        """Call a function that returns a handle through a pointer."""
        handle = c_void_p()
        self._call(name, *((*arguments, byref(handle)) if pointer_last else (byref(handle), *arguments)))
        if not handle.value:
            raise CilsegError(f"CUDA: {name} gave nothing back.")
        return handle.value


def open_device() -> Device:
    """Return the GPU of this machine.

    Raises:
        MissingDependencyError: CUDA's runtime library is not installed.
        CilsegError: no usable GPU.
    """
    return CudaRuntime().device()


def _load() -> ctypes.CDLL:
    """Load libcudart from the loader's path or from the packages that bring it (TensorRT's, torch's)."""
    tried: list[str] = []
    for candidate in _candidates():
        try:
            return ctypes.CDLL(candidate)
        except OSError as exc:
            tried.append(f"{candidate}: {exc}")
    raise MissingDependencyError(
        f"CUDA's runtime library (libcudart.so.{_MAJORS[0]} or .{_MAJORS[1]}) is not installed. TensorRT needs an "
        f"NVIDIA GPU with its driver, and: pip install 'cilseg[tensorrt]'. Tried {len(tried)} places."
    )


def _candidates() -> list[str]:
    names = [f"libcudart.so.{major}" for major in _MAJORS]
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [str(p) for root in roots for name in names for p in sorted(root.glob(f"*/lib/{name}"))]
    return [*found, *names]
