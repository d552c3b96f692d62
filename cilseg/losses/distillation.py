"""Distillation of an old model's scores on its own channels: LwF, LwF-MC, ILT, iCaRL.

Sources: Li, Hoiem, "Learning without Forgetting", ECCV 2016 (LwF); Rebuffi et al., "iCaRL", CVPR 2017 (LwF-MC);
Michieli, Zanuttigh, "Incremental Learning Techniques for Semantic Segmentation", ICCV Workshops 2019 (ILT); the
arithmetic is that of the baselines in the released MiB and WILSON code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.pixel import Reduction, bce_with_ignore, cross_entropy, reduce_pixels
from cilseg.losses.precision import at_least_float32
from cilseg.losses.wilson import encoder_distillation


def kd(
    logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Soft-max distillation of the old channels, the new ones left out of the student's soft-max.

    Args:
        logits: (B, C, H, W).
        old_logits: (B, n_old, H, W) of the old model, n_old <= C; no gradient flows into them.
        alpha: multiplies the old logits.
        mask: (B, H, W), multiplies the loss of a pixel; "mean" still divides by all pixels.
        reduction: "none", "mean" or "sum" over images and pixels; channels are always averaged.

    Returns:
        (B, H, W) or a scalar.

    Raises:
        InputError: more old channels than channels.
    """
    _check_channels(logits, old_logits)
    ours = at_least_float32(logits[:, : old_logits.shape[1]])
    wanted = (at_least_float32(old_logits.detach()).to(ours.dtype) * alpha).softmax(dim=1)
    per_pixel = -(wanted * ours.log_softmax(dim=1)).mean(dim=1)
    if mask is not None:
        per_pixel = per_pixel * mask.to(per_pixel.dtype)
    return reduce_pixels(per_pixel, reduction=reduction)


def icarl_loss(
    logits: Tensor,
    target: Tensor,
    old_logits: Tensor,
    *,
    background_mix: float | None = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy to the labels, old foreground channels to the old model's sigmoid scores instead.

    With ``background_mix=None`` this is WILSON's segmentation loss (CVPR 2022, eq. 7 and 8) for hard labels made
    beforehand. A void pixel (any id outside 0 .. C - 1) has no label: zero for background and new classes, which
    counts as it does in the released code.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids.
        old_logits: (B, n_old, H, W) of the old model, background included; no gradient flows into them.
        background_mix: share of the label in the background's target, the rest being the old score; 1 takes the label
            alone, 0 the old score alone, None the smaller of the two.
        reduction: "none" gives (B, H, W), "mean" the mean over all pixels, void ones included, "sum" their sum.

    Returns:
        (B, H, W) or a scalar; classes are summed.

    Raises:
        InputError: more old channels than channels.
    """
    _check_channels(logits, old_logits)
    logits = at_least_float32(logits)
    n_old = old_logits.shape[1]
    old = at_least_float32(old_logits.detach()).to(logits.dtype).sigmoid()
    channels = torch.arange(logits.shape[1], device=target.device).view(1, -1, 1, 1)
    labels = (target.long().unsqueeze(1) == channels).to(logits.dtype)
    if background_mix is None:
        background = torch.minimum(labels[:, :1], old[:, :1])
    else:
        background = background_mix * labels[:, :1] + (1.0 - background_mix) * old[:, :1]
    wanted = torch.cat([background, old[:, 1:], labels[:, n_old:]], dim=1)
    per_pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
    return reduce_pixels(per_pixel, reduction=reduction)


def icarl_all_old(logits: Tensor, target: Tensor, old_logits: Tensor) -> Tensor:
    """iCaRL for disjoint steps: every old channel, background too, follows the old model's sigmoid scores.

    Arguments as in :func:`icarl_loss`.

    Returns:
        Scalar: classes summed, mean over all pixels, void ones included.
    """
    return icarl_loss(logits, target, old_logits, background_mix=0.0)


def sigmoid_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the old channels to the old model's sigmoid scores.

    Args:
        logits: (B, C, H, W).
        old_logits: (B, n_old, H, W), n_old <= C; no gradient flows into them.

    Returns:
        Scalar: mean over images, old channels and pixels.

    Raises:
        InputError: more old channels than channels.
    """
    _check_channels(logits, old_logits)
    ours = at_least_float32(logits[:, : old_logits.shape[1]])
    wanted = at_least_float32(old_logits.detach()).to(ours.dtype).sigmoid()
    return F.binary_cross_entropy_with_logits(ours, wanted)


def lwf_losses(
    logits: Tensor, target: Tensor, *, old_logits: Tensor, kd_weight: float = 100.0, ignore_id: int = VOID_ID
) -> dict[str, Tensor]:
    """LwF: cross-entropy and soft-max distillation; the total is their sum.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids.
        old_logits: (B, n_old, H, W).
        kd_weight: factor of the distillation; 100 in the MiB code.
        ignore_id: the id to leave out of the cross-entropy (it stays in the denominator, as released).

    Returns:
        Scalars "ce" and "kd", the latter weighted.
    """
    return {
        "ce": cross_entropy(logits, target, ignore_id=ignore_id),
        "kd": kd_weight * kd(logits, old_logits),
    }


def lwf_mc_losses(
    logits: Tensor, target: Tensor, *, old_logits: Tensor, weight: float = 10.0, ignore_id: int = VOID_ID
) -> dict[str, Tensor]:
    """LwF-MC: one sigmoid per class for labels and distillation; the total is the sum.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids.
        old_logits: (B, n_old, H, W).
        weight: factor of the distillation, times n_old; 10 in the MiB code.
        ignore_id: the id to leave out of the label loss (it stays in the denominator, as released).

    Returns:
        Scalars "bce" and "kd", the latter weighted.
    """
    return {
        "bce": bce_with_ignore(logits, target, ignore_id=ignore_id).mean(),
        "kd": weight * old_logits.shape[1] * sigmoid_distillation(logits, old_logits),
    }


def ilt_losses(
    logits: Tensor,
    target: Tensor,
    *,
    old_logits: Tensor,
    body: Tensor,
    old_body: Tensor,
    kd_weight: float = 100.0,
    body_weight: float = 100.0,
    ignore_id: int = VOID_ID,
) -> dict[str, Tensor]:
    """ILT: LwF plus the squared distance of the backbone's features; the total is the sum.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids.
        old_logits: (B, n_old, H, W).
        body: (B, D, h, w) backbone output.
        old_body: the same of the old model; no gradient flows into it.
        kd_weight: factor of the distillation.
        body_weight: factor of the feature distance.
        ignore_id: the id to leave out of the cross-entropy.

    Returns:
        Scalars "ce", "kd" and "body", the last two weighted.
    """
    losses = lwf_losses(logits, target, old_logits=old_logits, kd_weight=kd_weight, ignore_id=ignore_id)
    return losses | {"body": body_weight * encoder_distillation(body, old_body)}


def _check_channels(logits: Tensor, old_logits: Tensor) -> None:
    if old_logits.shape[1] > logits.shape[1]:
        raise InputError(
            f"The old model has {old_logits.shape[1]} channels, the new one only {logits.shape[1]}; swap the arguments?"
        )
