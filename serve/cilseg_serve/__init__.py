"""Run cilseg models without torch: read images, segment them, look at the result.

Example:
    >>> from cilseg_serve import Segmenter          # doctest: +SKIP
    >>> result = Segmenter("animals@production").segment("cow.jpg")   # doctest: +SKIP
    >>> result.coverage                             # doctest: +SKIP
    {'background': 0.81, 'cow': 0.19}
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilseg_serve.geotiff import segment_geotiff
    from cilseg_serve.images import read_image, read_mask, write_mask
    from cilseg_serve.predict import predict_paths
    from cilseg_serve.segmentation import Segmentation
    from cilseg_serve.segmenter import Segmenter
    from cilseg_serve.sliding_window import SlidingWindow
    from cilseg_serve.watching import watch

__all__ = [
    "Segmentation",
    "Segmenter",
    "SlidingWindow",
    "predict_paths",
    "read_image",
    "read_mask",
    "segment_geotiff",
    "watch",
    "write_mask",
]

_HOMES = {
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "SlidingWindow": "sliding_window",
    "predict_paths": "predict",
    "read_image": "images",
    "read_mask": "images",
    "segment_geotiff": "geotiff",
    "watch": "watching",
    "write_mask": "images",
}


if not TYPE_CHECKING:  # hidden from type checkers, so that a misspelt name stays an error

    def __getattr__(name: str) -> object:
        """Import the public names on first use, so that ``import cilseg_serve`` stays fast."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
