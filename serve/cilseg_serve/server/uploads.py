"""Images out of request bodies: the size is read from the header, and refused, before any pixel is decoded."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import Preprocessing
from cilseg_serve.images import decode_image
from cilseg_serve.preprocessing import network_size_hw
from cilseg_serve.server.errors import OverloadedError, TooLargeError
from cilseg_serve.server.settings import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


@dataclass
class PixelBudget:
    """Pixels of all images that are decoded and not answered yet; threads share it."""

    limit: int
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, pixels: int) -> None:
        """Take room for an image; one alone always fits.

        Raises:
            OverloadedError: other images fill the memory that images may take.
        """
        with self._lock:
            if self._taken and self._taken + pixels > self.limit:
                raise OverloadedError(
                    f"Images of {self._taken:,} pixels are being worked on; another of {pixels:,} would need too much "
                    "memory. Try again in a moment."
                )
            self._taken += pixels

    def give_back(self, pixels: int) -> None:
        """Return what was taken."""
        with self._lock:
            self._taken -= pixels


def encoded_size_hw(data: bytes) -> tuple[int, int] | None:
    """Return height and width that the header of an image file states, None where it is none that can be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # decoders raise almost anything on a damaged header; decode_image() says what is wrong
        return None


def decode_upload(data: bytes, limits: Limits, budget: PixelBudget, *, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image file of a request as ``(H, W, 3)`` uint8 RGB; its pixels are taken from ``budget``.

    Raises:
        InputError: not an image, truncated, animated.
        TooLargeError: over the limit of pixels.
        OverloadedError: no room now.
    """
    size = encoded_size_hw(data)
    if size is None:
        return decode_image(io.BytesIO(data), name=name)  # raises, with the reason
    check_pixels(size[0], size[1], limits)
    pixels = size[0] * size[1]
    budget.take(pixels)
    try:
        return decode_image(io.BytesIO(data), name=name)
    except BaseException:
        budget.give_back(pixels)
        raise


def check_pixels(height: int, width: int, limits: Limits) -> None:
    """Refuse an image of too many pixels.

    Raises:
        TooLargeError: it is over the limit.
    """
    if height * width > limits.image_pixels:
        raise TooLargeError(
            f"The image has {width} x {height} px; this server takes at most {limits.image_pixels:,} pixels. "
            "Shrink it, cut it into tiles, or use `cilseg predict` for files of this size."
        )


def seen_size_hw(height: int, width: int, preprocessing: Preprocessing, limits: Limits) -> tuple[int, int]:
    """Return the size at which the network sees an image.

    Raises:
        InputError: an image too thin to be resized.
        TooLargeError: more pixels than the server lets a network see.
    """
    size = network_size_hw(height, width, preprocessing.short_side_px)
    if size[0] * size[1] > limits.network_pixels:
        raise TooLargeError(
            f"The network would see this image of {width} x {height} px at {size[1]} x {size[0]} px; this server "
            f"allows {limits.network_pixels:,} pixels. Shrink it or cut it into tiles."
        )
    return size
