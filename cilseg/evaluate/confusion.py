"""Confusion matrices of masks: rows are the truth, columns the prediction, void is left out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cilseg.classes import MAX_CLASSES, VOID_ID
from cilseg.errors import FaultCollector, InputError

Mask = npt.NDArray[np.integer]
Confusion = npt.NDArray[np.int64]

_ADVICE = "Map the masks to the class set of the model, void to 255 in the truth."


def confusion_matrix(truth: Mask, prediction: Mask, *, n_classes: int) -> Confusion:
    """Count pixels by true and predicted class.

    Args:
        truth: integer ids of any shape, 255 where a pixel does not count.
        prediction: ids of the same shape; where the truth is 255 anything may stand.
        n_classes: number of classes, background included.

    Returns:
        (n_classes, n_classes) int64, ``[truth, prediction]``.

    Raises:
        InputError: ``n_classes`` is not 1 .. 255, the shapes differ, the ids are no integers, or some are
            outside 0 .. n_classes - 1.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    faults = FaultCollector("Confusion matrix")
    if not 1 <= n_classes <= MAX_CLASSES:
        faults.add(f"{n_classes} classes; a class set holds 1 .. {MAX_CLASSES}.")
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.dtype.kind not in "iu":
            faults.add(f"the {name} holds {ids.dtype} values, expected integer class ids.")
    if truth.shape != prediction.shape:
        faults.add(f"the truth has size {_size(truth)}, the prediction {_size(prediction)}.")
    faults.raise_if_any("Give two masks of class ids at the size of the image.")

    # One byte of truth and one of prediction make the bin: range checks then look at 65,536 bins, not at pixels.
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.size and (ids.min() < 0 or ids.max() > VOID_ID):
            _report_outside(faults, name, np.unique(ids), n_classes=n_classes)
    faults.raise_if_any(_ADVICE)
    bins = truth.astype(np.intp)
    bins <<= 8
    bins |= prediction
    table = np.bincount(bins.ravel(), minlength=256 * 256).reshape(256, 256)
    counted = table[:VOID_ID]
    _report_outside(faults, "truth", np.flatnonzero(counted.any(axis=1)), n_classes=n_classes)
    _report_outside(faults, "prediction", np.flatnonzero(counted.any(axis=0)), n_classes=n_classes)
    faults.raise_if_any(_ADVICE)
    return np.ascontiguousarray(table[:n_classes, :n_classes], dtype=np.int64)


def _report_outside(faults: FaultCollector, name: str, ids: npt.NDArray[np.integer], *, n_classes: int) -> None:
    outside = [int(i) for i in ids if not 0 <= i < n_classes and not (name == "truth" and i == VOID_ID)]
    if outside:
        shown = ", ".join(str(i) for i in outside[:10]) + (", ..." if len(outside) > 10 else "")
        void = " (255 is void in the truth only)" if VOID_ID in outside else ""
        faults.add(f"the {name} holds ids {shown}; known are 0 .. {n_classes - 1}{void}.")


def image_confusions(pairs: Iterable[tuple[Mask, Mask]], *, n_classes: int) -> Confusion:
    """Stack the confusion matrices of single images.

    Args:
        pairs: (truth, prediction) of each image; sizes may differ from image to image.
        n_classes: number of classes, background included.

    Returns:
        (N, n_classes, n_classes) int64; its sum over the first axis is the matrix of the whole set.

    Raises:
        InputError: see :func:`confusion_matrix`; the message says which pair (counted from 0).
    """
    matrices = []
    for index, (truth, prediction) in enumerate(pairs):
        try:
            matrices.append(confusion_matrix(truth, prediction, n_classes=n_classes))
        except InputError as error:
            raise InputError(f"Pair {index}: {error}") from error
    return np.stack(matrices) if matrices else np.zeros((0, n_classes, n_classes), dtype=np.int64)


def _size(values: npt.NDArray[np.generic]) -> str:
    return "x".join(str(n) for n in values.shape) or "scalar"
