# ruff: noqa: N802, ARG002 - names and parameters are those of the real library
"""A stand-in for libcudart: memory of this process, streams that run at once, graphs that replay what was captured.

Offers exactly the functions that the real library of one major version exports (``cudart_symbols.json``) and that are
implemented below; sizes are checked, and what is still allocated can be asked for.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYMBOLS: dict[str, list[str]] = json.loads(Path(__file__).with_name("cudart_symbols.json").read_text(encoding="utf-8"))
INVALID, NO_DEVICE, CAPTURE_UNSUPPORTED = 1, 100, 900
_MAJOR, _MINOR, _PROCESSORS = 75, 76, 16


class _Function:
    """Takes ``argtypes`` and ``restype`` like a function of ctypes, and holds calls to the number of arguments."""

    argtypes: tuple[Any, ...] = ()
    restype: Any = None

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def __call__(self, *arguments: Any) -> Any:
        assert len(arguments) == len(self.argtypes), (self._work.__name__, arguments)
        return self._work(*arguments)


class FakeCuda:
    """The library.

    Args:
        major: which libcudart it stands in for.
        compute_capability: of its one GPU.
        devices: how many GPUs there are.
        can_capture: whether streams can be captured into graphs.
    """

    def __init__(
        self, *, major: int = 13, compute_capability: str = "9.0", devices: int = 1, can_capture: bool = True
    ) -> None:
        self.compute_capability, self.devices, self.can_capture = compute_capability, devices, can_capture
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]] | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self._next = 1000
        exported = set(SYMBOLS[f"libcudart.so.{major}"])
        for name in dir(type(self)):
            if name.startswith("_cuda") and name[1:] in exported:
                setattr(self, name[1:], _Function(getattr(self, name)))

    def view(self, address: int, size_bytes: int) -> memoryview:
        """Return ``size_bytes`` of an allocation; asking for more than it has is an error."""
        block = self.memory[address]
        assert size_bytes <= len(block), f"{size_bytes} bytes of a buffer of {len(block)}"
        return memoryview(block).cast("B")[:size_bytes]

    def submit(self, stream: int, work: Callable[[], None]) -> bool:
        """Run ``work`` on a stream, or record it while the stream is captured."""
        recording = self.streams[stream]
        if recording is None:
            work()
        else:
            recording.append(work)
        return True

    def _handle(self, pointer: Any) -> int:
        self._next += 1
        pointer._obj.value = self._next
        return self._next

    def _allocate(self, pointer: Any, size_bytes: int) -> int:
        block = (ctypes.c_uint8 * size_bytes)()
        address = ctypes.addressof(block)
        self.memory[address] = block
        pointer._obj.value = address
        return 0

    def _release(self, address: int) -> int:
        return 0 if self.memory.pop(address, None) is not None else INVALID

    def _cudaGetErrorString(self, status: int) -> bytes:
        names = {NO_DEVICE: b"no CUDA-capable device is detected", CAPTURE_UNSUPPORTED: b"not permitted when capturing"}
        return names.get(status, b"invalid argument")

    def _cudaGetDeviceCount(self, pointer: Any) -> int:
        pointer._obj.value = self.devices
        return 0 if self.devices else NO_DEVICE

    def _cudaDeviceGetAttribute(self, pointer: Any, which: int, device: int) -> int:
        major, minor = self.compute_capability.split(".")
        pointer._obj.value = {_MAJOR: int(major), _MINOR: int(minor), _PROCESSORS: 132}[which]
        return 0 if device == 0 else INVALID

    def _cudaStreamCreateWithFlags(self, pointer: Any, flags: int) -> int:
        self.streams[self._handle(pointer)] = None
        return 0

    def _cudaStreamDestroy(self, stream: int) -> int:
        del self.streams[stream]
        return 0

    def _cudaStreamSynchronize(self, stream: int) -> int:
        return 0 if self.streams[stream] is None else CAPTURE_UNSUPPORTED

    def _cudaMalloc(self, pointer: Any, size_bytes: int) -> int:
        return self._allocate(pointer, size_bytes)

    def _cudaHostAlloc(self, pointer: Any, size_bytes: int, flags: int) -> int:
        return self._allocate(pointer, size_bytes)

    def _cudaFree(self, address: int) -> int:
        return self._release(address)

    def _cudaFreeHost(self, address: int) -> int:
        return self._release(address)

    def _cudaMemcpyAsync(self, target: int, source: int, size_bytes: int, kind: int, stream: int) -> int:
        assert kind in (1, 2)

        def copy() -> None:
            self.view(target, size_bytes)[:] = bytes(self.view(source, size_bytes))

        self.submit(stream, copy)
        return 0

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        if not self.can_capture:
            return CAPTURE_UNSUPPORTED
        self.streams[stream] = []
        return 0

    def _cudaStreamEndCapture(self, stream: int, pointer: Any) -> int:
        recorded, self.streams[stream] = self.streams[stream], None
        assert recorded is not None
        self.graphs[self._handle(pointer)] = recorded
        return 0

    def _cudaGraphInstantiate(self, pointer: Any, graph: int, flags: int) -> int:
        self.graphs[self._handle(pointer)] = self.graphs[graph]
        return 0

    def _cudaGraphDestroy(self, graph: int) -> int:
        del self.graphs[graph]
        return 0

    def _cudaGraphExecDestroy(self, graph: int) -> int:
        del self.graphs[graph]
        return 0

    def _cudaGraphLaunch(self, graph: int, stream: int) -> int:
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return 0
