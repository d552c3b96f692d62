"""Pictures inside a report: an image under the colours of its classes, as a data URI."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.classes import ClassSet
from cilseg_serve.segmentation import Segmentation


def blend(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], class_set: ClassSet, *, alpha: float = 0.55
) -> npt.NDArray[np.uint8]:
    """Return ``image`` (H, W, 3) under the class colours of ``mask`` (H, W); background and void stay untouched."""
    return Segmentation(mask, class_set.names, class_set.palette).overlay(image, alpha)


def data_uri(image: npt.NDArray[np.uint8], *, side_px: int = 420, quality: int = 82) -> str:
    """Return an (H, W, 3) image as a JPEG ``data:`` URI, shrunk so that its longer side has at most ``side_px``."""
    picture = Image.fromarray(image)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
