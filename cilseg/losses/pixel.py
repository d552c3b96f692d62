"""Losses against a mask: one label per pixel, void left out."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32

Reduction = Literal["none", "mean", "sum"]


def reduce_pixels(
    per_pixel: Tensor, counts: Tensor | None = None, *, reduction: Reduction | Literal["valid_mean"]
) -> Tensor:
    """Reduce (B, H, W) losses that are 0 at ignored pixels.

    Args:
        per_pixel: (B, H, W).
        counts: (B, H, W) bool, the pixels that count; None: all.
        reduction: "none", "sum", "mean" over all pixels, "valid_mean" over those that count (0 when none does).

    Returns:
        (B, H, W) or a scalar.
    """
    if reduction == "none":
        return per_pixel
    if reduction == "mean":
        return per_pixel.mean()
    total = per_pixel.sum()
    if reduction == "sum":
        return total
    return total / (per_pixel.numel() if counts is None else counts.sum().clamp(min=1))


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_id: int = VOID_ID,
    reduction: Reduction | Literal["valid_mean"] = "mean",
) -> Tensor:
    """Soft-max cross-entropy.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids, ``ignore_id`` where a pixel does not count.
        ignore_id: the id to leave out.
        reduction: as in :func:`reduce_pixels`. "mean" keeps ignored pixels in the denominator, as the released code
            of MiB and its successors does; PIFS takes "valid_mean".

    Returns:
        (B, H, W) or a scalar, float64 when the logits are, float32 otherwise.
    """
    per_pixel = F.cross_entropy(at_least_float32(logits), target.long(), ignore_index=ignore_id, reduction="none")
    return reduce_pixels(per_pixel, target != ignore_id, reduction=reduction)


def focal_ce(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 1.0, ignore_id: int = VOID_ID
) -> Tensor:
    """Focal cross-entropy: ``alpha (1 - p_y)^gamma (-log p_y)``, mean over all pixels, ignored ones as 0.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 5, and WILSON's released code.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids, ``ignore_id`` where a pixel does not count.
        gamma: 0 gives the cross-entropy.
        alpha: factor of the whole loss.
        ignore_id: the id to leave out.

    Returns:
        Scalar.
    """
    ce = cross_entropy(logits, target, ignore_id=ignore_id, reduction="none")
    return alpha * ((-torch.expm1(-ce)) ** gamma * ce).mean()


def bce_with_ignore(
    logits: Tensor, target: Tensor, *, ignore_id: int = VOID_ID, reduction: Reduction = "none"
) -> Tensor:
    """Binary cross-entropy of every class, summed over the classes of a pixel.

    The loss of WILSON's base step (Cermelli et al., CVPR 2022, eq. 1): one sigmoid per class, so that the scores
    of one class do not depend on those of the others. The base step takes ``reduction="none"`` and then the mean
    over all pixels, void ones included as zeros.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) integer class ids, ``ignore_id`` where a pixel does not count.
        ignore_id: the id to leave out.
        reduction: "none" gives (B, h, w) with 0 at ignored pixels, "mean" the mean over the pixels that count
            (0 when none does), "sum" their sum.

    Returns:
        (B, h, w) or a scalar, float64 when the logits are, float32 otherwise.
    """
    logits = at_least_float32(logits)
    counts = target != ignore_id
    labels = torch.where(counts, target, 0).long()
    # sum_c bce(z_c, [c = y]) = -sum_c log sigmoid(-z_c) - z_y: no one-hot tensor is built.
    per_pixel = -F.logsigmoid(-logits).sum(dim=1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    per_pixel = torch.where(counts, per_pixel, 0.0)
    if reduction == "none":
        return per_pixel
    total = per_pixel.sum()
    return total if reduction == "sum" else total / counts.sum().clamp(min=1)
