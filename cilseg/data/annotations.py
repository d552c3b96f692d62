"""What a tag list may carry beside tags: points and scribbles as partial masks (254 elsewhere), priors as weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.data.labels import Mask
from cilseg.errors import FaultCollector, InputError
from cilseg_serve.images import read_image, read_mask

POINT_RADIUS_PX = 2
"""Half the side of the square that a point becomes in training: single pixels get lost when a mask is resized."""


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


def read_scribble(path: Path | None, *, class_ids: Sequence[int], height: int, width: int) -> Mask:
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
    mapped: Mask = table[values]
    return mapped


def read_prior(path: Path, *, n_classes: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read a prior: where the classes of a tag list may be, from a grey or a palette PNG.

    Grey says how sure it is that some object is there (0 surely none, 255 surely one). The indices of a palette say
    which: 0 surely none of the list's classes, k its k-th class, 255 not known.

    Args:
        path: the file.
        n_classes: new classes of the tag list.
        height: of the image.
        width: of the image.

    Returns:
        (height, width, n_classes) uint8, 255 where a class may be, 0 where it surely is not.

    Raises:
        InputError: no image, of another size, coloured, or with indices that name no class.
    """
    grey = read_image(path)
    with Image.open(path) as picture:
        indexed = picture.mode == "P"
    if grey.shape[:2] != (height, width):
        raise InputError(
            f"{path}: {grey.shape[1]} x {grey.shape[0]} px, but its image has {width} x {height}; resize the prior"
        )
    if not indexed:
        if (grey != grey[..., :1]).any():
            raise InputError(f"{path}: coloured; save it as 8-bit grey, or as a palette PNG with one index per class")
        return np.repeat(grey[..., :1], n_classes, axis=2)
    values = read_mask(path)
    unknown = sorted({int(v) for v in np.unique(values)} - {VOID_ID} - set(range(n_classes + 1)))
    if unknown:
        raise InputError(
            f"{path}: the indices {unknown} name nothing; use 0 for none of the classes, 1 to {n_classes} for those of "
            "the list in their order, 255 for not known, or save it as grey"
        )
    may_be = (values[..., None] == np.arange(1, n_classes + 1)) | (values == VOID_ID)[..., None]
    return np.where(may_be, 255, 0).astype(np.uint8)
