"""Which images calibrate INT8, and what ranges the activations have on them.

A class that the calibration images do not show has activations nobody looked at, so every class must be present.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cilseg.errors import FaultCollector, InputError
from cilseg_export.precision.source import FloatGraph, require_onnxruntime

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
N_IMAGES = 32
PERCENTILE = 99.99
QUANTISED_TYPES = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool"),
    *("GlobalAveragePool", "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid"),
)
"""Operators that run on integers; everything else stays float."""


def choose_images(presence: npt.NDArray[np.bool_], class_names: Sequence[str], *, n_images: int) -> list[int]:
    """Choose images so that every class is shown, the rare ones first, then classes shown least so far.

    Args:
        presence: ``(N, n_foreground)``: which image shows which class.
        class_names: names of the columns.
        n_images: how many to choose; all of them where there are fewer. More where the classes need more.

    Returns:
        Positions of the chosen images, ascending; the same ones every time.

    Raises:
        InputError: classes that no image shows; all are named.
    """
    faults = FaultCollector("Calibration images")
    for name, column in zip(class_names, presence.T, strict=True):
        if not column.any():
            faults.add(f"class {name!r} is in none of the {len(presence)} images")
    faults.raise_if_any(
        "INT8 is calibrated on images that show every class. Give some: --calibration tags.json (a tag list), or "
        "--calibration DIR."
    )
    chosen: list[int] = []
    counts = np.zeros(presence.shape[1], dtype=np.int64)
    left = list(range(len(presence)))
    while left and (len(chosen) < n_images or not counts.all()):
        if counts.all() or not presence.size:
            gains = [float((presence[i] / (1.0 + counts)).sum()) for i in left]
        else:  # the classes without an image yet, the rarest the more urgent
            urgency = (counts == 0) / np.maximum(presence.sum(axis=0), 1)
            gains = [float((presence[i] * urgency).sum()) for i in left]
        best = left.pop(int(np.argmax(gains)))
        chosen.append(best)
        counts += presence[best]
    return sorted(chosen)


class _Reader:
    """Hands onnxruntime's calibrator one image at a time, so that sizes may differ and memory stays small."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._images, self._queue = images, list[npt.NDArray[np.uint8]]()

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._queue = list(self._images[start_index:end_index])

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return {"image": self._queue.pop(0)[None]} if self._queue else None


def activation_ranges(
    source: FloatGraph, images: Sequence[npt.NDArray[np.uint8]], *, method: Method = "minmax", symmetric: bool = False
) -> Any:
    """Return the range of every activation that may be quantised (onnxruntime's ``TensorsData``).

    Args:
        source: the float32 graph.
        images: the calibration images, ``(H, W, 3)`` uint8 RGB as the network sees them; sizes may differ.
        method: ``minmax`` takes the largest values, ``entropy`` the range with the least information lost,
            ``percentile`` leaves out the outermost 0.01 %.
        symmetric: ranges around zero.

    Raises:
        InputError: no images, or an unknown method.
        MissingDependencyError: onnxruntime is not installed.
    """
    require_onnxruntime()
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    if not images:
        raise InputError("INT8 is calibrated on images, got none. Give some with --calibration.")
    if method not in METHODS:
        raise InputError(f"Calibration method {method!r} is not known. Methods: {', '.join(METHODS)}.")
    kind = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[method]
    options: dict[str, Any] = {"symmetric": symmetric}
    if method == "percentile":
        options["percentile"] = PERCENTILE
    folder_, chatter = (
        tempfile.TemporaryDirectory(prefix="cilseg-calibration-"),
        contextlib.redirect_stdout(io.StringIO()),
    )
    with folder_ as folder, chatter:
        path = Path(folder) / "float.onnx"
        onnx.save(source.model, path)
        calibrator = create_calibrator(
            path,
            list(QUANTISED_TYPES),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        reader = _Reader(images)
        for index in range(len(images)):
            reader.set_range(index, index + 1)
            calibrator.collect_data(reader)
        return calibrator.compute_data()
