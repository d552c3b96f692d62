"""What somebody or something else knows of single pixels, brought into the shares that new classes have of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import UNLABELLED_ID


def under_prior(shares: Tensor, prior: Tensor, *, weight: float) -> Tensor:
    """Multiply shares with ``1 - weight + weight * prior``: softly, so that a wrong prior lowers but does not forbid.

    Args:
        shares: (1, K, h, w), at least 0.
        prior: (1, K, H, W), or (1, 1, H, W) for all classes, in 0 .. 1; brought to the size of the shares by the mean.
        weight: 0 leaves the shares as they are, 1 forbids a class where its prior is 0.

    Returns:
        (1, K, h, w).
    """
    small = F.interpolate(prior.to(shares.dtype), size=shares.shape[-2:], mode="area")
    return shares * (1.0 - weight + weight * small)


def at_points(shares: Tensor, points: Tensor, *, n_old: int) -> Tensor:
    """Give the marked pixels to their class alone.

    Args:
        shares: (1, K, h, w) of new classes.
        points: (H, W) channel ids where somebody pointed, ``UNLABELLED_ID`` elsewhere; brought to the size of the
            shares by nearest neighbour, so a mark should have the size of a cell.
        n_old: old channels, background included: marks of these leave nothing to new classes.

    Returns:
        (1, K, h, w): 1 for the class of a mark and 0 for the others there.
    """
    small = F.interpolate(points[None, None].float(), size=shares.shape[-2:], mode="nearest")
    classes = torch.arange(n_old, n_old + shares.shape[1], device=shares.device)[None, :, None, None]
    return torch.where(small == UNLABELLED_ID, shares, (small == classes).to(shares.dtype))
