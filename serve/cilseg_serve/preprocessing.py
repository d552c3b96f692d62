"""Resizing to the network's size and back: the only preprocessing outside the exported graph.

Evaluation, parity checks and serving all use these functions, so they agree by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.errors import InputError

if TYPE_CHECKING:
    from cilseg.bundle import Preprocessing

MAX_NETWORK_PIXELS = 64_000_000
"""Largest image after resizing; only extremely long and thin images reach it."""

_Value = TypeVar("_Value", np.uint8, np.float32)


def network_size_hw(height: int, width: int, short_side_px: int | None) -> tuple[int, int]:
    """Return the ``(height, width)`` at which the network sees an image; the aspect ratio is kept to half a pixel.

    ``short_side_px=None`` keeps the image's own size.

    Raises:
        InputError: a side below 1, or an image so thin that its resized form would exceed 64 million pixels.
    """
    if height < 1 or width < 1:
        raise InputError(f"An image has at least 1 x 1 px, got {width} x {height}.")
    if short_side_px is None:
        return height, width
    short = min(height, width)
    size_hw = (2 * height * short_side_px + short) // (2 * short), (2 * width * short_side_px + short) // (2 * short)
    if size_hw[0] * size_hw[1] > MAX_NETWORK_PIXELS:
        raise InputError(
            f"Image of {width} x {height} px would become {size_hw[1]} x {size_hw[0]} px at the network "
            f"(short side {short_side_px} px). Crop it to a less extreme aspect ratio."
        )
    return size_hw


def prepare(image: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize ``(H, W, 3)`` uint8 RGB to the network's size (bilinear, antialiased), ``(h, w, 3)`` uint8.

    The array itself is returned when its size is already right. Normalisation is not done here but in the graph.

    Raises:
        InputError: not ``(H, W, 3)`` uint8, or see :func:`network_size_hw`.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"Expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}. Use as_rgb_array() first."
        )
    height, width = network_size_hw(image.shape[0], image.shape[1], preprocessing.short_side_px)
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def restore_mask(mask: npt.NDArray[_Value], height: int, width: int) -> npt.NDArray[_Value]:
    """Bring a mask ``(h, w)`` uint8 (or a float32 confidence map) to the image's ``(height, width)``: nearest pixel.

    Each output pixel takes the input pixel that lies under its centre (the later one on a boundary).
    The array itself is returned when its size is already right.
    """
    if mask.shape == (height, width):
        return mask
    # Integer arithmetic, exact at ties, where floating-point resizers differ from each other.
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    restored: npt.NDArray[_Value] = mask.take(columns, axis=1)[rows]
    return restored
