"""Single-stage segmentation from image tags (SS): the mask learns from its own refined and thresholded copy.

Source: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.aggregate import tag_loss
from cilseg.losses.pamr import pamr
from cilseg.losses.precision import at_least_float32
from cilseg.losses.pseudo_labels import mask_by_tags, partial_mask
from cilseg.losses.wilson import balanced_mask_ce

PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)


def with_background(foreground_logits: Tensor, *, logit: float = 1.0) -> Tensor:
    """Put a background channel of one constant in front. (B, F, h, w) -> (B, F + 1, h, w)."""
    return torch.cat([torch.full_like(foreground_logits[:, :1], logit), foreground_logits], dim=1)


@torch.no_grad()
def self_mask(
    logits: Tensor,
    image: Tensor,
    *,
    tags: Tensor,
    pamr_iterations: int = 10,
    pamr_dilations: Sequence[int] = PAMR_DILATIONS,
) -> Tensor:
    """Make the mask that the network is trained against, at the size of the image.

    The soft-max is refined at map size, brought to image size (bilinear, corners aligned), cleared of classes that
    are not tagged, and thresholded (:func:`cilseg.losses.pseudo_labels.partial_mask`).

    Args:
        logits: (B, F + 1, h, w), background first.
        image: (B, 3, H, W), any affine scaling.
        tags: (B, F): 1 present; every other value hides a class.
        pamr_iterations: see :func:`cilseg.losses.pamr.pamr`; 0 leaves the maps unrefined.
        pamr_dilations: the same.

    Returns:
        (B, F + 1, H, W) of zeros and ones; a pixel of zeros is undecided.
    """
    soft_max = at_least_float32(logits).softmax(dim=1)
    small = F.interpolate(at_least_float32(image), size=soft_max.shape[-2:], mode="bilinear", align_corners=True)
    refined = pamr(small, soft_max, iterations=pamr_iterations, dilations=pamr_dilations)
    full = F.interpolate(refined, size=image.shape[-2:], mode="bilinear", align_corners=True)
    return partial_mask(mask_by_tags(full, tags))


def single_stage_losses(
    logits: Tensor,
    image: Tensor,
    *,
    tags: Tensor,
    warm_up: bool = False,
    pamr_iterations: int = 10,
    pamr_dilations: Sequence[int] = PAMR_DILATIONS,
) -> dict[str, Tensor]:
    """All losses of SS; the total is their sum.

    Args:
        logits: (B, F + 1, h, w), background first (:func:`with_background`).
        image: (B, 3, H, W), any affine scaling.
        tags: (B, F): 1 present, 0 absent, -1 or NaN unknown.
        warm_up: leave "mask" at zero; the first five epochs of the paper.
        pamr_iterations: see :func:`self_mask`.
        pamr_dilations: the same.

    Returns:
        Scalars under "cls" (soft margin of nGWP plus focal penalty, eq. 1 to 4) and "mask" (class-balanced
        cross-entropy at image size, section 4.4).
    """
    losses = {"cls": tag_loss(logits, tags)}
    if warm_up:
        return losses | {"mask": (logits.detach() * 0.0).sum()}
    mask = self_mask(logits, image, tags=tags, pamr_iterations=pamr_iterations, pamr_dilations=pamr_dilations)
    return losses | {"mask": balanced_mask_ce(logits, mask, tags)}
