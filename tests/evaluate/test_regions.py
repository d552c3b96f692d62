"""Connected regions against scipy, and which objects flip."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cilseg.evaluate.regions import RegionFlips, connected_regions, region_flips


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (23, 31)])
def test_regions_are_those_of_scipy(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), size=shape, p=[0.5, 0.3, 0.1, 0.1])
    labels, n = connected_regions(mask)
    expected, count = np.zeros(shape, dtype=np.int64), 0
    for value in np.unique(mask):
        found, k = ndimage.label(mask == value)
        expected[mask == value] = found[mask == value] + count
        count += k
    assert n == count
    assert len(np.unique(labels)) == n
    assert len(np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1).T) == n  # one to one


def test_a_spiral_is_one_region() -> None:
    """A shape whose arms only meet far away: labels have to travel."""
    mask = np.zeros((41, 41), dtype=np.uint8)
    low, high = 0, 40
    while low < high:
        mask[low, low : high + 1] = mask[low : high + 1, high] = mask[high, low : high + 1] = 1
        mask[low + 2 : high + 1, low] = 1
        mask[low + 2, low : low + 3] = 1
        low, high = low + 2, high - 2
    _, count = ndimage.label(mask)
    labels, _ = connected_regions(mask)
    assert len(np.unique(labels[mask == 1])) == count


def test_empty_mask() -> None:
    labels, n = connected_regions(np.zeros((0, 5), dtype=np.uint8))
    assert (labels.shape, n) == ((0, 5), 0)


def test_an_object_flips_when_half_of_it_does() -> None:
    truth = np.zeros((40, 60), dtype=np.uint8)
    truth[2:12, 2:12], truth[20:30, 2:12], truth[2:12, 30:40], truth[35, 50] = 1, 1, 2, 1
    before, after = truth.copy(), truth.copy()
    after[2:12, 2:8] = 3  # 60 of 100 pixels of the first object lost
    before[20:26, 2:12] = 0  # 60 of 100 of the second were not found before
    after[2:12, 30:40] = 0  # class 2 is not asked for
    after[35, 50] = 0  # a speck does not count
    assert region_flips(truth, before, after, classes=[1]) == RegionFlips(negative=1, positive=1, regions=2)
    after[2:12, 7] = 1  # half is enough
    assert region_flips(truth, before, after, classes=[1]).negative == 0
    assert region_flips(truth, before, after, classes=[1, 2]) == RegionFlips(negative=1, positive=1, regions=3)
    assert region_flips(truth, before, after, classes=[7]) == RegionFlips(0, 0, 0)
