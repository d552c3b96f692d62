"""Masks from point annotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cilseg.classes import UNLABELLED_ID
from cilseg.data.labels import Mask
from cilseg.errors import FaultCollector


def paint_points(
    points: Sequence[Sequence[int]], *, height: int, width: int, radius: int = 0, fill: int = UNLABELLED_ID
) -> Mask:
    """Paint a square around every point, in the order given; later ones cover earlier ones.

    A single pixel may be lost when a mask is resized; radius 2 (5 x 5 pixels) is an option of the loader in MiB's
    second code release, which fills with 0 and so cannot tell unlabelled pixels from background.

    Args:
        points: rows of x, y, class id, in pixels from the top left.
        height: of the mask.
        width: of the mask.
        radius: half the side of the square; squares are cut at the border.
        fill: id of all other pixels.

    Returns:
        (height, width) uint8.

    Raises:
        InputError: points outside the mask or ids that are no class; every fault in one message.
    """
    faults = FaultCollector("Point annotations")
    for x, y, class_id in points:
        if not (0 <= x < width and 0 <= y < height):
            faults.add(f"point ({x}, {y}) is outside the image of {width} x {height} pixels")
        if not 0 <= class_id < UNLABELLED_ID:
            faults.add(f"point ({x}, {y}) has class {class_id}, which is outside 0-{UNLABELLED_ID - 1}")
    faults.raise_if_any("Give x, y in pixels of the image, x first.")
    mask: Mask = np.full((height, width), fill, dtype=np.uint8)
    for x, y, class_id in points:
        mask[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = class_id
    return mask
