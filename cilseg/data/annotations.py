"""Points and scribbles as partial masks: channel ids where somebody marked something, 254 elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.errors import InputError
from cilseg_serve.images import read_mask


def paint_points(
    points: Iterable[tuple[float, float, int]],
    *,
    height: int,
    width: int,
    radius_px: int = 2,
    rest: int = UNLABELLED_ID,
) -> npt.NDArray[np.uint8]:
    """Paint a square around each point, later ones over earlier ones (the ``extension`` of MiBv2's loader).

    Args:
        points: x, y (pixels, to the right and down) and channel id.
        height: of the image.
        width: of the image.
        radius_px: 2 gives squares of 5 x 5, clipped at the border; 0 single pixels.
        rest: id of every other pixel.

    Returns:
        (height, width) uint8.

    Raises:
        InputError: a point outside of the image; all of them are named.
    """
    mask = np.full((height, width), rest, dtype=np.uint8)
    outside = []
    for x, y, class_id in points:
        column, row = int(x), int(y)
        if not (0 <= row < height and 0 <= column < width):
            outside.append((x, y))
            continue
        top, left = max(0, row - radius_px), max(0, column - radius_px)
        mask[top : row + radius_px + 1, left : column + radius_px + 1] = class_id
    if outside:
        raise InputError(f"points {outside} lie outside of the image of {width} x {height} px; x comes first")
    return mask


def read_scribble(path: Path | None, *, class_ids: Sequence[int], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read a scribble PNG: 0 background, k the k-th class of the tag list, 255 not scribbled on.

    Args:
        path: the file; None: nothing is scribbled on.
        class_ids: channel ids of the classes of the tag list, in its order.
        height: of the image.
        width: of the image.

    Returns:
        (height, width) uint8 of channel ids, ``UNLABELLED_ID`` where nothing is scribbled.

    Raises:
        InputError: no mask, of another size, or with values that name no class.
    """
    if path is None:
        return np.full((height, width), UNLABELLED_ID, dtype=np.uint8)
    values = read_mask(path)
    if values.shape != (height, width):
        raise InputError(f"{path}: {values.shape[1]} x {values.shape[0]} px, but its image has {width} x {height}")
    unknown = sorted({int(v) for v in np.unique(values)} - {VOID_ID} - set(range(len(class_ids) + 1)))
    if unknown:
        raise InputError(
            f"{path}: the values {unknown} name nothing; 0 is background, 1 to {len(class_ids)} are the classes of the "
            "list in their order, 255 is not scribbled on"
        )
    table = np.full(256, UNLABELLED_ID, dtype=np.uint8)
    table[0] = 0
    table[1 : len(class_ids) + 1] = class_ids
    mapped: npt.NDArray[np.uint8] = table[values]
    return mapped
