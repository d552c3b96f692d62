"""Random crops and flips for training; stateless: the draw depends on seed, epoch and index alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip, as in the released WILSON code (spec of the paper's repository).

    The crop's area is ``scale`` times the image's (draws larger than the image are drawn again, ten times at most,
    then the largest central square is taken), its aspect 3/4 to 4/3; it is resized to ``size_px`` x ``size_px``.
    """

    size_px: int
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.0

    def __call__(
        self, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        """Map ``(H, W, 3)`` and ``(H, W)`` or ``(H, W, K)`` labels to the same with ``H = W = size_px``."""
        box = self._box(image.shape[0], image.shape[1], rng)
        flip = rng.random() < 0.5
        size = (self.size_px, self.size_px)
        out = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))
        if self.jitter:
            out = _jitter(out, self.jitter, rng)
        labels = None
        if mask is not None:
            planes = [mask] if mask.ndim == 2 else [mask[..., k] for k in range(mask.shape[2])]
            cut = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.NEAREST, box=box)) for p in planes]
            labels = cut[0] if mask.ndim == 2 else np.stack(cut, axis=-1)
        if flip:
            out = out[:, ::-1]
            labels = None if labels is None else labels[:, ::-1]
        return np.ascontiguousarray(out), None if labels is None else np.ascontiguousarray(labels)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_w <= width and 0 < crop_h <= height:
                left = int(rng.integers(0, width - crop_w + 1))
                top = int(rng.integers(0, height - crop_h + 1))
                return left, top, left + crop_w, top + crop_h
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


def _jitter(image: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    brightness, contrast = 1 + strength * rng.uniform(-1, 1, 2)
    tint = 1 + 0.5 * strength * rng.uniform(-1, 1, 3)
    values = image.astype(np.float32)
    mean = values.mean()
    jittered: npt.NDArray[np.uint8] = np.clip(((values - mean) * contrast + mean) * brightness * tint, 0, 255).astype(
        np.uint8
    )
    return jittered
