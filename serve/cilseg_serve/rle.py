"""Run lengths of binary masks as COCO writes them, plain and packed into a string; numpy only.

Runs count pixels column by column, background first. The string holds each count (from the fourth on its difference to
the count two places back) as groups of five bits, low first, bit 0x20 for "more follows", plus 48
(``cocoapi/common/maskApi.c``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError

MAX_MASK_PIXELS = 1_000_000_000
"""Largest mask that is decoded; a few bytes of runs can claim any size."""
_GROUPS = 8  # of five bits: counts and differences under 2**39


def encode(mask: npt.NDArray[Any], *, compressed: bool = True) -> dict[str, Any]:
    """Return ``{"size": [H, W], "counts": ...}`` of a mask ``(H, W)``; whatever is not zero is set.

    ``counts`` is a string, or a list of integers where ``compressed`` is false.

    Raises:
        InputError: not two-dimensional, or no pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise InputError(f"A mask is (H, W) with at least one pixel, got shape {mask.shape}.")
    counts = _runs(np.asarray(mask, dtype=np.bool_).ravel(order="F"))
    return {"size": list(mask.shape), "counts": _packed(counts) if compressed else counts.tolist()}


def decode(rle: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the mask ``(H, W)`` uint8 of 0 and 1 from either form of counts.

    Raises:
        InputError: fields missing or of the wrong kind, damaged counts, or counts that do not fill the size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        raw = rle["counts"]
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"Run lengths have the fields size [H, W] and counts, got {_short(rle)} ({exc!r}).") from exc
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise InputError(f"Run lengths of a mask of {width} x {height} px: expected 1 to {MAX_MASK_PIXELS:,} pixels.")
    counts = _unpacked(raw) if isinstance(raw, str | bytes) else _listed(raw)
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise InputError(
            f"Run lengths of {int(counts.sum())} pixels do not fill {width} x {height} px. The mask was cut or is of "
            "another size."
        )
    values = np.repeat((np.arange(len(counts)) & 1).astype(np.uint8), counts)
    return values.reshape((height, width), order="F")


def area_and_box(mask: npt.NDArray[Any]) -> tuple[int, tuple[int, int, int, int]]:
    """Return the number of set pixels and their box ``(x, y, width, height)``, zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, (0, 0, 0, 0)
    top, left = int(rows[0]), int(columns[0])
    return int(np.count_nonzero(mask)), (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


def _runs(flat: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).astype(np.int64)
    return np.concatenate(([0], runs)) if flat[0] else runs


def _packed(counts: npt.NDArray[np.int64]) -> str:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    shifted = values[:, None] >> (5 * np.arange(_GROUPS + 1))
    groups = shifted[:, :-1] & 0x1F
    # A group is the last when what remains is the sign that its bit 0x10 already says.
    more = shifted[:, 1:] != np.where(groups & 0x10, -1, 0)
    written = np.concatenate([np.ones((len(values), 1), np.bool_), np.logical_and.accumulate(more, axis=1)], axis=1)
    letters = (groups | np.where(more, 0x20, 0)) + 48
    text: bytes = letters[written[:, :-1]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def _unpacked(text: str | bytes) -> npt.NDArray[np.int64]:
    data = text.encode("ascii", errors="replace") if isinstance(text, str) else text
    counts: list[int] = []
    position = 0
    while position < len(data):
        value = shift = 0
        while True:
            if position == len(data) or not 48 <= data[position] < 112 or shift > 5 * _GROUPS:
                raise InputError(
                    f"Packed run lengths are damaged at character {position} of {len(data)}. Read the file again."
                )
            letter = data[position] - 48
            value |= (letter & 0x1F) << shift
            shift += 5
            position += 1
            if not letter & 0x20:
                break
        if letter & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return np.array(counts, dtype=np.int64)


def _listed(raw: Sequence[Any]) -> npt.NDArray[np.int64]:
    try:
        counts = np.array(raw, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"Counts are a string or a list of integers, got {_short(raw)} ({exc}).") from exc
    if counts.ndim != 1:
        raise InputError(f"Counts are one flat list of integers, got {_short(raw)}.")
    return counts


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
