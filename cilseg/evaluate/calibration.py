"""Calibration: does the soft-max confidence of the winning class say how often it is right?

Expected calibration error (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017, eq. 3): pixels are grouped
by confidence, and the gaps between mean confidence and accuracy are averaged, weighted by pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Pixels by confidence: (BINS,) pixel counts, right pixels, and sums of confidence (0 to 1)."""

    pixels: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]

    @classmethod
    def empty(cls) -> Calibration:
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS))

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.pixels + other.pixels, self.right + other.right, self.confidence + other.confidence)

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1; NaN without pixels."""
        total = int(self.pixels.sum())
        return float(np.abs(self.confidence - self.right).sum() / total) if total else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy: above 0, the model is surer than it is right; NaN without pixels."""
        total = int(self.pixels.sum())
        return float((self.confidence.sum() - self.right.sum()) / total) if total else float("nan")


def calibration_of(
    truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]
) -> Calibration:
    """Group the pixels of one image; void pixels are left out.

    Args:
        truth: (H, W) ids, 255 void.
        prediction: (H, W) ids.
        confidence: (H, W) soft-max probability of the predicted class, 0 to 1.
    """
    counted = truth != VOID_ID
    sure = confidence[counted].astype(np.float64)
    bins = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    right = (prediction == truth)[counted]
    return Calibration(
        np.bincount(bins, minlength=BINS).astype(np.int64),
        np.bincount(bins, weights=right, minlength=BINS).astype(np.int64),
        np.bincount(bins, weights=sure, minlength=BINS).astype(np.float64),
    )
