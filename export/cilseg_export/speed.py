"""How much faster one file is than another on this machine: calls in turn, so that both see the same load."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg_export.runtime import OnnxRuntime, Runtime

_WARM_UP, _LEAST, _MOST, _BUDGET_S = 2, 5, 41, 6.0


@dataclass(frozen=True)
class Speedup:
    """Median times of one image in milliseconds, and their ratio."""

    reference_ms: float
    ms: float
    pairs: int
    size_hw: tuple[int, int]
    runtime: str

    @property
    def factor(self) -> float:
        return self.reference_ms / self.ms

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "factor": round(self.factor, 3)}


def measure_speedup(reference: Path, path: Path, image: npt.NDArray[np.uint8], *, threads: int = 0) -> Speedup:
    """Time ``path`` against ``reference`` on one image ``(H, W, 3)`` with onnxruntime on the CPU.

    A few seconds at most: for the record of an export, not for a benchmark (``cilseg bench latency`` is one).
    """
    runtimes: list[Runtime] = [OnnxRuntime(reference, threads=threads), OnnxRuntime(path, threads=threads)]
    times: list[list[float]] = [[], []]
    started = time.perf_counter()
    while len(times[0]) < _LEAST + _WARM_UP or (len(times[0]) < _MOST and time.perf_counter() - started < _BUDGET_S):
        for runtime, row in zip(runtimes, times, strict=True):
            before = time.perf_counter()
            runtime.run(image[None])
            row.append(1000.0 * (time.perf_counter() - before))
    first, second = (median(row[_WARM_UP:]) for row in times)
    description = runtimes[1].description
    return Speedup(
        reference_ms=round(first, 3),
        ms=round(second, 3),
        pairs=len(times[0]) - _WARM_UP,
        size_hw=(image.shape[0], image.shape[1]),
        runtime=f"{description['runtime']} {description['version']}",
    )
