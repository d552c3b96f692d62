"""Pooled distillation of intermediate features at several scales (PLOP: Douillard et al., CVPR 2021, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def fold_new_into_background(logits: Tensor, *, n_old: int) -> Tensor:
    """Add the new channels to the background, so that logits compare with the old model's.

    (B, C, h, w) -> (B, n_old, h, w).
    """
    background = logits[:, :1] + logits[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:n_old]], dim=1)


def local_pod(features: Tensor, *, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Means of the squared features over the rows and columns of an s x s grid of square cells, for each scale.

    As in the released code a cell has ``floor(w / s)`` pixels on both sides, and what the grid leaves over is not
    pooled. Computed in float32 at least: squares overflow half precision.

    Args:
        features: (B, C, h, w).
        scales: numbers of cells along a side.

    Returns:
        (B, sum of s * s * 2 * C * floor(w / s)); per cell first the means over the width, then over the height.
    """
    squared = features.to(torch.promote_types(features.dtype, torch.float32)).square()
    pooled = []
    for scale in scales:
        side = features.shape[-1] // scale
        for row in range(scale):
            for column in range(scale):
                cell = squared[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
                pooled += [cell.mean(dim=3).flatten(1), cell.mean(dim=2).flatten(1)]
    return torch.cat(pooled, dim=1)


def local_pod_loss(
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    *,
    factors: Sequence[float],
    n_old: int,
    n_new: int,
    scales: Sequence[int] = (1, 2, 4),
    scheduled: bool = True,
) -> Tensor:
    """Mean over the layers of ``factor * mean over images of ||local_pod(new) - local_pod(old)||``.

    Args:
        features: one (B, C_l, h_l, w_l) per layer; logits folded (:func:`fold_new_into_background`).
        old_features: the same of the old model; no gradient flows into them.
        factors: of each layer.
        n_old: number of old channels, background included.
        n_new: number of new classes.
        scales: see :func:`local_pod`.
        scheduled: multiply by ``sqrt(C / n_new)``, C all classes, so that many old classes weigh more.

    Returns:
        Scalar.
    """
    total = torch.zeros((), device=features[0].device)
    for ours, theirs, factor in zip(features, old_features, factors, strict=True):
        difference = local_pod(ours, scales=scales) - local_pod(theirs.detach(), scales=scales).to(ours.device)
        total = total + factor * difference.norm(dim=1).mean()
    return total / len(features) * (math.sqrt((n_old + n_new) / n_new) if scheduled and n_new else 1.0)
