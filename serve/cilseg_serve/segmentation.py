"""The result of segmenting one image: the mask, what its ids mean, and views of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError, did_you_mean
from cilseg_serve.images import ImageLike, as_rgb_array, write_mask
from cilseg_serve.polygons import Polygon, trace
from cilseg_serve.rle import encode

_BORDER_SHADE = 0.55


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Class ids of one image at its own size.

    Attributes:
        mask: ``(H, W)`` uint8 class ids; 255 is void.
        class_names: name of each id, background first.
        palette: ``(len(class_names), 3)`` uint8 RGB, colour of each id.
        confidence: ``(H, W)`` float32 soft-max of the winning class, or ``None`` when it was not asked for.

    Raises:
        InputError: shapes or data types that do not fit together.
    """

    mask: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    palette: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.uint8 or self.mask.size == 0:
            raise InputError(f"A mask is (H, W) uint8 and not empty, got {self.mask.shape} {self.mask.dtype}.")
        if self.palette.shape != (len(self.class_names), 3) or self.palette.dtype != np.uint8:
            raise InputError(
                f"A palette for {len(self.class_names)} classes is ({len(self.class_names)}, 3) uint8, "
                f"got {self.palette.shape} {self.palette.dtype}."
            )
        if self.confidence is not None and self.confidence.shape != self.mask.shape:
            raise InputError(f"Confidence has shape {self.confidence.shape}, the mask {self.mask.shape}.")

    @property
    def coverage(self) -> dict[str, float]:
        """Fraction of all pixels per class name, every class in id order; they sum to 1 unless there is void."""
        counts = np.bincount(self.mask.ravel(), minlength=256)
        return {name: float(counts[index] / self.mask.size) for index, name in enumerate(self.class_names)}

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the foreground classes that have at least one pixel, in id order."""
        return tuple(name for name, share in list(self.coverage.items())[1:] if share > 0)

    @property
    def legend(self) -> dict[str, str]:
        """Colour ``#rrggbb`` of each class in :attr:`present`."""
        colors = dict(zip(self.class_names, self.palette, strict=True))
        return {name: "#" + bytes(colors[name]).hex() for name in self.present}

    def overlay(self, image: ImageLike, alpha: float = 0.5) -> npt.NDArray[np.uint8]:
        """Blend the class colours over ``image`` with thin darker borders; background and void stay untouched.

        Args:
            image: the segmented image (array, Pillow image or path), of the mask's size.
            alpha: weight of the class colour, 0 to 1.

        Returns:
            ``(H, W, 3)`` uint8 RGB, a new array.

        Raises:
            InputError: another size than the mask's, or ``alpha`` out of range.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is between 0 and 1, got {alpha}.")
        rgb = as_rgb_array(image)
        if rgb.shape[:2] != self.mask.shape:
            raise InputError(
                f"The image is {rgb.shape[1]} x {rgb.shape[0]} px, the mask {self.mask.shape[1]} x "
                f"{self.mask.shape[0]} px. Give the image that was segmented."
            )
        out = rgb.copy()
        painted = (self.mask > 0) & (self.mask < len(self.class_names))
        colors = self.palette[self.mask[painted]].astype(np.float32)
        blend = rgb[painted] * np.float32(1 - alpha) + colors * np.float32(alpha)
        blend[_borders(self.mask)[painted]] *= _BORDER_SHADE
        out[painted] = np.rint(blend).astype(np.uint8)
        return out

    def polygons(self, *, min_area: int = 1) -> list[Polygon]:
        """Return the outlines of all regions but background and void, with their holes (see ``polygons.trace``)."""
        return trace(self.mask, min_area=min_area)

    def rle(self, name: str, *, compressed: bool = True) -> dict[str, Any]:
        """Return the pixels of one class as COCO run lengths ``{"size": [H, W], "counts": ...}``.

        Raises:
            InputError: no class of that name.
        """
        if name not in self.class_names:
            raise InputError(f"Unknown class {name!r}.{did_you_mean(name, self.class_names)}")
        return encode(self.mask == self.class_names.index(name), compressed=compressed)

    def save(self, path: str | Path) -> None:
        """Write the mask as a palette PNG, atomically.

        Raises:
            InputError: the file name does not end with ``.png``.
        """
        if Path(path).suffix.lower() != ".png":
            raise InputError(
                f"{path}: masks are saved as PNG, other formats change the ids. Use a name ending in .png."
            )
        write_mask(path, self.mask, self.palette)


def _borders(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return where a pixel of ``(H, W)`` has a 4-neighbour of another id; the rim of the image is no border."""
    border = np.zeros(mask.shape, dtype=np.bool_)
    vertical = mask[1:] != mask[:-1]
    horizontal = mask[:, 1:] != mask[:, :-1]
    border[1:] |= vertical
    border[:-1] |= vertical
    border[:, 1:] |= horizontal
    border[:, :-1] |= horizontal
    return border
