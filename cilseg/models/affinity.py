"""Class maps walked along the affinities of learned features, from the maps' size to hard labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.affinity import affinity_matrix, random_walk
from cilseg.losses.label_making import background_of
from cilseg.losses.precision import at_least_float32


@torch.no_grad()
def walk_maps(
    maps: Tensor,
    features: Tensor,
    *,
    radius: int = 5,
    power: float = 8.0,
    doublings: int = 6,
    background_power: float = 6.0,
) -> Tensor:
    """Spread class maps and their background along the affinities of features (SEAM's second stage).

    Args:
        maps: (B, F, H, W) in 0 .. 1, untagged classes zero (:func:`cilseg.losses.label_making.over_range`).
        features: (B, D, h, w) of :class:`cilseg.models.weak.AffinityHead`; the maps are averaged to this size.
        radius: of the affinities, in cells.
        power: of the affinities, see :func:`cilseg.losses.affinity.random_walk`.
        doublings: the same.
        background_power: of the background, see :func:`cilseg.losses.label_making.background_of`.

    Returns:
        (B, F + 1, h, w), background first.
    """
    maps = at_least_float32(maps).clamp(min=0.0)
    size_hw = (features.shape[-2], features.shape[-1])
    start = F.adaptive_avg_pool2d(torch.cat([background_of(maps, power=background_power), maps], dim=1), size_hw)
    return random_walk(start, affinity_matrix(features, radius=radius), power=power, doublings=doublings)


@torch.no_grad()
def walked_labels(walked: Tensor, *, size_hw: tuple[int, int]) -> Tensor:
    """Label every pixel of the image with the strongest walked map.

    Args:
        walked: (B, F + 1, h, w) of :func:`walk_maps`.
        size_hw: height and width of the labels, pixels; bilinear, corners not aligned.

    Returns:
        (B, *size_hw) int64; 0 background, c the c-th class map.
    """
    return F.interpolate(walked, size=size_hw, mode="bilinear", align_corners=False).argmax(dim=1)
