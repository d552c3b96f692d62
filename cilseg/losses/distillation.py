"""Distillation of the old channels, as it is: soft-max (LwF, ILT), sigmoid (LwF-MC), and labels joined with it (iCaRL).

Source: the baselines of MiB (Cermelli et al., CVPR 2020) and WILSON (CVPR 2022) in their released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.pixel import Reduction, reduced
from cilseg.losses.precision import at_least_float32


def knowledge_distillation(
    logits: Tensor, old_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of the old channels' soft-max against the old model's, mean over the old channels.

    Args:
        logits: (B, C, h, w); the soft-max is over the first ``n_old`` channels alone.
        old_logits: (B, n_old, h, w); no gradient flows into them.
        alpha: factor on the old logits before their soft-max.
        mask: (B, h, w) factor on every pixel; the mean is over all pixels all the same.
        reduction: "none" gives (B, h, w).

    Returns:
        (B, h, w) or a scalar.
    """
    ours = at_least_float32(logits[:, : old_logits.shape[1]]).log_softmax(dim=1)
    wanted = (at_least_float32(old_logits.detach()).to(ours.dtype) * alpha).softmax(dim=1)
    per_pixel = -(ours * wanted).mean(dim=1)
    if mask is not None:
        per_pixel = per_pixel * mask.to(per_pixel.dtype)
    return reduced(per_pixel, reduction)


def sigmoid_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the old channels against the old model's sigmoid; mean over pixels and old channels.

    Args:
        logits: (B, C, h, w).
        old_logits: (B, n_old, h, w); no gradient flows into them.
    """
    ours = at_least_float32(logits[:, : old_logits.shape[1]])
    return F.binary_cross_entropy_with_logits(ours, at_least_float32(old_logits.detach()).to(ours.dtype).sigmoid())


def icarl_loss(
    logits: Tensor,
    target: Tensor,
    old_logits: Tensor,
    *,
    background: float | None = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy against labels of the new classes joined with the old model's scores of the old ones.

    With ``background=None`` this is WILSON's eq. 7 and 8 for hard labels made beforehand.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) channel ids. A pixel of 255 has no label: no new class, not background; it counts.
        old_logits: (B, n_old, h, w); no gradient flows into them.
        background: share k of the label in the background's target, ``k label + (1 - k) old``; None takes the smaller
            of the two.
        reduction: "none" gives (B, h, w), summed over the classes; "mean" is over all pixels.

    Returns:
        (B, h, w) or a scalar.
    """
    logits = at_least_float32(logits)
    n_classes, n_old = logits.shape[1], old_logits.shape[1]
    labels = torch.where(target == VOID_ID, n_classes, target).long()
    wanted = F.one_hot(labels, n_classes + 1)[..., :n_classes].movedim(-1, 1).to(logits.dtype)
    old = at_least_float32(old_logits.detach()).to(logits.dtype).sigmoid()
    if background is None:
        first = torch.minimum(wanted[:, :1], old[:, :1])
    else:
        first = background * wanted[:, :1] + (1.0 - background) * old[:, :1]
    wanted = torch.cat([first, old[:, 1:], wanted[:, n_old:]], dim=1)
    per_pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
    return reduced(per_pixel, reduction)
