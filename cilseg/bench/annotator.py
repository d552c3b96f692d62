"""A simulated annotator: what somebody who sees the objects of a mask would point at or scribble over."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cilseg.classes import UNLABELLED_ID, VOID_ID

MIN_PIXELS = 64
"""Smaller parts of an object are passed over."""
_WIDTH = 3


def points_from_mask(mask: npt.NDArray[np.uint8], class_ids: Collection[int]) -> list[tuple[int, int, int]]:
    """Return one point (x, y, class id) per connected object of the classes: a pixel far from its border.

    Args:
        mask: (H, W) channel ids.
        class_ids: of the classes that are annotated.
    """
    points = []
    for class_id in sorted(class_ids):
        for part in _parts(mask == class_id):
            y, x = _innermost(part)
            points.append((x, y, class_id))
    return points


def scribbles_from_mask(mask: npt.NDArray[np.uint8], class_ids: Collection[int]) -> npt.NDArray[np.uint8]:
    """Return a partial mask (H, W) with one stroke down the middle of each object and one through the background.

    Background is what shows no class of the mask at all, so that a person would know it. A stroke follows, row by row,
    the middle of the longest run of the object; other pixels are ``UNLABELLED_ID``.

    Args:
        mask: (H, W) channel ids of all classes, 255 void.
        class_ids: of the classes that are annotated, without background.
    """
    drawn = np.full(mask.shape, UNLABELLED_ID, dtype=np.uint8)
    for class_id in [0, *sorted(class_ids)]:
        parts = _parts(mask == class_id)
        if class_id == 0:
            parts = sorted(parts, key=lambda part: -int(part.sum()))[:1]
        for part in parts:
            _stroke(drawn, part, class_id)
    return drawn


def prior_from_mask(mask: npt.NDArray[np.uint8], groups: Sequence[Collection[int]]) -> npt.NDArray[np.uint8]:
    """Return where the classes of each group are, 3 pixels wider: (H, W, number of groups), 255 there and 0 elsewhere.

    Args:
        mask: (H, W) channel ids, 255 void, which counts for every group.
        groups: class ids that one prior speaks of together.
    """
    planes = [np.isin(mask, [*group, VOID_ID]).astype(np.uint8) * 255 for group in groups]
    wider = [Image.fromarray(plane).filter(ImageFilter.MaxFilter(2 * _WIDTH + 1)) for plane in planes]
    return np.stack([np.asarray(plane) for plane in wider], axis=-1)


def _stroke(drawn: npt.NDArray[np.uint8], part: npt.NDArray[np.bool_], class_id: int) -> None:
    rows = np.flatnonzero(part.any(axis=1))
    margin = len(rows) // 8  # a hand starts and ends inside the object
    for y in rows[margin : len(rows) - margin]:
        columns = np.flatnonzero(part[y])
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
        longest = max(runs, key=len)
        centre = longest[len(longest) // 2]
        left, right = max(longest[0], centre - _WIDTH // 2), min(longest[-1], centre + _WIDTH // 2)
        drawn[y, left : right + 1] = class_id


def _innermost(part: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return a pixel that the erosion of ``part`` removes last."""
    inside = np.pad(part, 1)
    while True:
        eroded = inside.copy()
        for axis in (0, 1):
            eroded &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
        if not eroded.any():
            ys, xs = np.nonzero(inside)
            middle = len(ys) // 2
            return int(ys[middle]) - 1, int(xs[middle]) - 1
        inside = eroded


def _parts(where: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Return the 4-connected parts of at least MIN_PIXELS, in the order of their first pixel."""
    left = where.copy()
    parts = []
    for start_y, start_x in zip(*np.nonzero(where), strict=True):
        if not left[start_y, start_x]:
            continue
        part = np.zeros_like(where)
        queue = deque([(int(start_y), int(start_x))])
        left[start_y, start_x] = False
        while queue:
            y, x = queue.popleft()
            part[y, x] = True
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < where.shape[0] and 0 <= nx < where.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    queue.append((ny, nx))
        if part.sum() >= MIN_PIXELS:
            parts.append(part)
    return parts
