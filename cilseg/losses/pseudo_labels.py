"""Labels made from a network's own maps and the tags of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot_max(values: Tensor) -> Tensor:
    """Return 1 where a channel holds the pixel's maximum, else 0; every channel of a tie gets its 1.

    (B, C, h, w) -> (B, C, h, w), same dtype.
    """
    return (values >= values.amax(dim=1, keepdim=True)).to(values.dtype)


def soft_labels(probabilities: Tensor, *, alpha: float) -> Tensor:
    """Mix the winning class and the map itself: ``alpha * one_hot_max(q) + (1 - alpha) * q`` (WILSON eq. 6).

    Nothing is renormalised: after :func:`mask_by_tags` a pixel may sum to less than one.

    Args:
        probabilities: (B, C, h, w).
        alpha: 1 gives hard labels, 0 the map; 0.5 in the paper.

    Returns:
        (B, C, h, w).
    """
    return alpha * one_hot_max(probabilities) + (1.0 - alpha) * probabilities


def mask_by_tags(probabilities: Tensor, tags: Tensor, *, keep_unknown: bool = False) -> Tensor:
    """Set the foreground channels that are not tagged as present to zero; the background channel is kept.

    Args:
        probabilities: (B, C, h, w), channel 0 background.
        tags: (B, C - 1): 1 present, 0 absent, -1 or NaN unknown.
        keep_unknown: keep channels of unknown tags too. The released code knows two states only and hides them.

    Returns:
        (B, C, h, w).
    """
    kept = tags != 0 if keep_unknown else tags > 0  # NaN != 0, and never > 0
    channels = torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)
    return probabilities * channels[:, :, None, None].to(probabilities.dtype)


def partial_mask(
    probabilities: Tensor,
    *,
    foreground_cut: float = 0.6,
    background_cut: float = 0.7,
    floor: float = 0.2,
    keep_ambiguous: bool = False,
) -> Tensor:
    """Pick the pixels that a class is sure of: those above a share of the class's own maximum in the image.

    A pixel is on for class c when ``m_c > max(floor, cut_c * max_i m_c(i))``; pixels that several classes claim are
    given to none (Araslanov and Roth, CVPR 2020, section 4.4).

    Args:
        probabilities: (B, C, h, w), untagged classes already zero (:func:`mask_by_tags`).
        foreground_cut: share of the maximum for channels 1 .. C - 1.
        background_cut: the same for channel 0.
        floor: lowest threshold.
        keep_ambiguous: leave pixels on that more than one class claims.

    Returns:
        (B, C, h, w) of zeros and ones, same dtype; a pixel of zeros is undecided.
    """
    highest = probabilities.amax(dim=(2, 3), keepdim=True)
    cuts = torch.full_like(highest, foreground_cut)
    cuts[:, 0] = background_cut
    mask = (probabilities > (highest * cuts).clamp(min=floor)).to(probabilities.dtype)
    if not keep_ambiguous:
        mask = mask * (mask.sum(dim=1, keepdim=True) == 1)
    return mask
