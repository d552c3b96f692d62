"""The random walk from class maps to labels."""

from __future__ import annotations

import torch

from cilseg.models.affinity import walk_maps, walked_labels


def test_a_map_fills_the_region_that_it_touches():
    region = torch.zeros(10, 12, dtype=torch.bool)
    region[2:8, 3:9] = True
    features = torch.where(region, 4.0, -4.0).expand(1, 5, 10, 12)
    maps = torch.zeros(1, 2, 80, 96)
    maps[0, 1, 16:48, 24:72] = 1.0  # two thirds of the region, in pixels
    walked = walk_maps(maps, features, radius=3)
    assert walked.shape == (1, 3, 10, 12)
    assert torch.equal(walked.argmax(dim=1)[0] == 2, region)
    labels = walked_labels(walked, size_hw=(80, 96))
    assert labels.shape == (1, 80, 96)
    assert set(labels.unique().tolist()) == {0, 2}
    assert labels[0, 60, 68] == 2  # inside the region, outside of the map


def test_images_walk_on_their_own():
    generator = torch.Generator().manual_seed(0)
    maps, features = torch.rand(2, 3, 40, 48, generator=generator), torch.randn(2, 6, 5, 6, generator=generator)
    both = walk_maps(maps, features)
    torch.testing.assert_close(both[:1], walk_maps(maps[:1], features[:1]))
    assert (both[:, 1:] <= 1).all()
    assert torch.isfinite(both).all()


def test_maps_below_zero_count_as_zero():
    """An untagged class is below zero after its maps are brought to their own range."""
    generator = torch.Generator().manual_seed(0)
    maps, features = torch.rand(1, 2, 40, 48, generator=generator), torch.randn(1, 6, 5, 6, generator=generator)
    maps[:, 0] = -1.0
    walked = walk_maps(maps, features)
    assert (walked[:, 0] >= 0).all()
    assert (walked[:, 1] == 0).all()
