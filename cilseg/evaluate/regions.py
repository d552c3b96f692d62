"""Connected regions of masks, and how many of them a model finds.

An object that disappears matters more than its pixels say: a *region* is a connected piece of one class in the truth,
and it is found when at least half of its pixels are called right.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID

Mask = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

FOUND_SHARE = 0.5
MIN_REGION_SHARE = 0.0005
"""Regions below this share of the image (at least 16 px) are specks of annotation and are not counted."""
MIN_REGION_PX = 16


def connected_regions(mask: Mask) -> tuple[Labels, int]:
    """Label the connected pieces of equal value of a mask, background included.

    Two pixels belong together when they share a side and a value. Runs of equal pixels in a row are joined with the
    runs they touch in the next row; labels of touching runs become the smallest one until nothing changes.

    Args:
        mask: (H, W) uint8.

    Returns:
        (H, W) labels 0 .. n - 1 in reading order of their first pixel, and n.
    """
    height, width = mask.shape
    if mask.size == 0:
        return np.zeros(mask.shape, dtype=np.int64), 0
    starts = np.ones((height, width), dtype=np.bool_)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    run_of = np.cumsum(starts.ravel()).reshape(height, width) - 1
    touching = mask[1:] == mask[:-1]
    edges = np.unique(np.stack([run_of[:-1][touching], run_of[1:][touching]], axis=1), axis=0)
    upper, lower = edges[:, 0], edges[:, 1]
    label = np.arange(int(run_of[-1, -1]) + 1)
    while True:
        smallest = np.minimum(label[upper], label[lower])
        joined = label.copy()
        np.minimum.at(joined, label[upper], smallest)
        np.minimum.at(joined, label[lower], smallest)
        joined = joined[joined]
        if np.array_equal(joined, label):
            break
        label = joined
    roots, numbered = np.unique(label, return_inverse=True)
    return numbered[run_of].astype(np.int64), len(roots)


@dataclass(frozen=True)
class RegionFlips:
    """Regions of old classes: how many there are, found before and lost now (negative), and the opposite."""

    negative: int
    positive: int
    regions: int

    def __add__(self, other: RegionFlips) -> RegionFlips:
        return RegionFlips(self.negative + other.negative, self.positive + other.positive, self.regions + other.regions)


def region_flips(truth: Mask, before: Mask, after: Mask, *, classes: Collection[int]) -> RegionFlips:
    """Count the regions of ``classes`` in the truth that two predictions find.

    Args:
        truth: (H, W) ids, 255 void.
        before: (H, W) ids of the parent, in the same class set.
        after: the same for the candidate.
        classes: ids of the classes whose regions count.
    """
    wanted = np.isin(truth, [i for i in classes if i != VOID_ID])
    if not wanted.any():
        return RegionFlips(0, 0, 0)
    labels, n = connected_regions(truth)
    area = np.bincount(labels.ravel(), minlength=n)
    counted = np.zeros(n, dtype=np.bool_)
    counted[labels[wanted]] = True
    counted &= area >= max(MIN_REGION_PX, MIN_REGION_SHARE * truth.size)
    was, now = (
        np.bincount(labels.ravel(), weights=(answer == truth).ravel(), minlength=n) >= FOUND_SHARE * area
        for answer in (before, after)
    )
    return RegionFlips(
        negative=int(np.count_nonzero(counted & was & ~now)),
        positive=int(np.count_nonzero(counted & ~was & now)),
        regions=int(np.count_nonzero(counted)),
    )
