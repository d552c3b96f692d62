"""Equivariant attention: two scales of an image must agree on their class maps (SEAM).

Source: Wang, Zhang, Kan, Shan, Chen, "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation", CVPR 2020, and its released code. Background is channel 0; its own map is never trained against tags.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.cam import cam_loss
from cilseg.losses.precision import at_least_float32
from cilseg.losses.pseudo_labels import mask_by_tags


def max_norm(maps: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Bring the positive part of every map to 0 .. 1: ``ReLU(r - min - eps) / (max - min + eps)``, ``r = ReLU(x)``.

    Maximum and minimum are taken over the pixels. (B, C, h, w) -> (B, C, h, w).
    """
    positive = at_least_float32(maps).relu()
    pixels = positive.flatten(2)
    # max(dim) and min(dim) give a tie's gradient to one pixel, as in the released code; amax would share it out.
    highest = pixels.max(dim=2).values[:, :, None, None]
    lowest = pixels.min(dim=2).values[:, :, None, None]
    return (positive - lowest - eps).relu() / (highest - lowest + eps)


def max_only(maps: Tensor) -> Tensor:
    """Set foreground values below their pixel's foreground maximum to zero; channel 0 stays.

    (B, C, h, w) -> (B, C, h, w).
    """
    foreground = maps[:, 1:]
    kept = foreground == foreground.amax(dim=1, keepdim=True)
    return torch.cat([maps[:, :1], torch.where(kept, foreground, 0.0)], dim=1)


def with_rest_as_background(maps: Tensor) -> Tensor:
    """Replace channel 0 by one minus the largest foreground value. (B, C, h, w) -> (B, C, h, w)."""
    # max(dim), not amax: see max_norm.
    return torch.cat([1.0 - maps[:, 1:].max(dim=1, keepdim=True).values, maps[:, 1:]], dim=1)


@torch.no_grad()
def correlation_input(maps: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Make what pixel correlation spreads: maps over their maximum, background as the rest, one class a pixel.

    Args:
        maps: (B, C, h, w) raw maps, background first.
        eps: taken from every value and added to every maximum.

    Returns:
        (B, C, h, w) in 0 .. 1.
    """
    positive = at_least_float32(maps).relu()
    scaled = (positive - eps).relu() / (positive.amax(dim=(2, 3), keepdim=True) + eps)
    return max_only(with_rest_as_background(scaled))


def correlate(maps: Tensor, features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Replace every pixel of the maps by the mean of the pixels that look like it (PCM, SEAM eq. 6).

    The weights are the positive cosines between feature vectors, divided by their sum over the sources.

    Args:
        maps: (B, C, h', w'), resized bilinearly (corners aligned) to the features.
        features: (B, D, h, w).
        eps: added to norms and sums.

    Returns:
        (B, C, h, w).
    """
    features = at_least_float32(features)
    size = features.shape[-2:]
    maps = F.interpolate(at_least_float32(maps), size=size, mode="bilinear", align_corners=True)
    flat = features.flatten(2)
    flat = flat / (flat.norm(dim=1, keepdim=True) + eps)
    with torch.autocast(flat.device.type, enabled=False):
        affinity = (flat.transpose(1, 2) @ flat).relu()
        affinity = affinity / (affinity.sum(dim=1, keepdim=True) + eps)
        spread: Tensor = (maps.flatten(2) @ affinity.to(maps.dtype)).view(maps.shape)
    return spread


def low_activation_loss(maps: Tensor, *, share: float = 0.25) -> Tensor:
    """Mean of the positive part of the lowest ``share`` of the pixels' largest values.

    Keeps some of every image free of foreground (released code only).

    Args:
        maps: (B, F, h, w) without background, classes that are not tagged zero.
        share: of the pixels, rounded down.

    Returns:
        Scalar: mean over these pixels and the images.
    """
    largest = at_least_float32(maps).max(dim=1).values.flatten(1)
    count = max(1, int(largest.shape[1] * share))
    return largest.topk(count, dim=1, largest=False).values.relu().mean()


def cross_regularisation(refined: Tensor, other: Tensor, *, share: float = 0.2) -> Tensor:
    """Mean of the largest ``share`` of ``|max_only(other) - refined|``, image by image (SEAM's ECR).

    Args:
        refined: (B, C, h, w) correlated maps of one view; gradient flows here.
        other: (B, C, h, w) maps of the other view, background rebuilt; no gradient flows into it.
        share: of the C * h * w values of an image, rounded down.

    Returns:
        Scalar.
    """
    difference = (max_only(other.detach()) - refined).abs().flatten(1)
    count = max(1, int(difference.shape[1] * share))
    return difference.topk(count, dim=1).values.mean()


def seam_losses(
    *, maps: Tensor, refined: Tensor, maps_small: Tensor, refined_small: Tensor, tags: Tensor
) -> dict[str, Tensor]:
    """All losses of SEAM for one batch seen at two scales; the total is their sum.

    Args:
        maps: (B, C, H, W) maps of the full view, before any activation, background first.
        refined: (B, C, H, W) the same after pixel correlation.
        maps_small: (B, C, h, w) maps of the reduced view (0.3 of the size in the paper).
        refined_small: (B, C, h, w) the same after pixel correlation.
        tags: (B, C - 1): 1 present, 0 absent, -1 or NaN unknown. A class that is not known to be present is hidden
            from all but "cls", where unknown entries are left out.

    Returns:
        Scalars under "cls" (soft margin, mean of both views), "min" (:func:`low_activation_loss`, mean of both), "er"
        (equivariance: mean absolute difference of the views' foreground) and "ecr" (sum of both directions).
    """
    size = maps_small.shape[-2:]

    def normalised(values: Tensor) -> Tensor:
        scaled = max_norm(values)
        if scaled.shape[-2:] != size:
            scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=True)
        return mask_by_tags(scaled, tags)

    first, second = normalised(maps), normalised(maps_small)
    first_refined, second_refined = normalised(refined), normalised(refined_small)
    low = [low_activation_loss(mask_by_tags(view, tags)[:, 1:]) for view in (refined, refined_small)]
    return {
        "cls": (cam_loss(maps[:, 1:], tags) + cam_loss(maps_small[:, 1:], tags)) / 2,
        "min": (low[0] + low[1]) / 2,
        "er": (first[:, 1:] - second[:, 1:]).abs().mean(),
        "ecr": cross_regularisation(first_refined, with_rest_as_background(second))
        + cross_regularisation(second_refined, with_rest_as_background(first)),
    }
