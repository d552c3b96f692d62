"""From maps to one score per class, and the loss of those scores against image tags."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.precision import at_least_float32

Aggregation = Literal["ngwp", "attention", "gap"]
TagReduction = Literal["none", "mean", "sum"]


def ngwp(logits: Tensor, eps: float = 1.0) -> Tensor:
    """Normalised global weighted pooling: the mean of the logits, weighted by their own soft-max.

    ``sum_i m_i z_i / (eps + sum_i m_i)`` with ``m`` the soft-max over the channels (Araslanov and Roth, CVPR 2020;
    WILSON eq. 2; ``eps`` is 1 in both released codes).

    Args:
        logits: (B, C, h, w).
        eps: added to the sum of the weights.

    Returns:
        (B, C) scores, to be read as logits.
    """
    logits = at_least_float32(logits)
    return _pooled(logits, logits.softmax(dim=1), eps)


def focal_penalty(logits: Tensor, *, power: float = 3.0, floor: float = 0.01) -> Tensor:
    """The size penalty ``(1 - mu)^power * log(floor + mu)``, ``mu`` the mean soft-max of a class over the map.

    Negative for classes that cover little (WILSON eq. 3).

    Args:
        logits: (B, C, h, w).
        power: exponent of the focal factor.
        floor: keeps the logarithm finite for a class that is nowhere.

    Returns:
        (B, C).
    """
    return _penalty(at_least_float32(logits).softmax(dim=1), power, floor)


def ngwp_focal(logits: Tensor, *, eps: float = 1.0, power: float = 3.0, floor: float = 0.01) -> Tensor:
    """``ngwp(logits) + focal_penalty(logits)``, the image score of WILSON. (B, C, h, w) -> (B, C)."""
    logits = at_least_float32(logits)
    soft = logits.softmax(dim=1)
    return _pooled(logits, soft, eps) + _penalty(soft, power, floor)


def attention_pool(logits: Tensor, *, floor: float = 0.01) -> Tensor:
    """``sum_i z_i (m_i + floor) / sum_i (m_i + floor)``, ``m`` the soft-max. (B, C, h, w) -> (B, C)."""
    logits = at_least_float32(logits)
    weights = logits.softmax(dim=1) + floor
    return (logits * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


def global_average(logits: Tensor) -> Tensor:
    """The plain mean over the map. (B, C, h, w) -> (B, C)."""
    return at_least_float32(logits).mean(dim=(2, 3))


def tag_loss(
    logits: Tensor,
    tags: Tensor,
    *,
    aggregation: Aggregation = "ngwp",
    reduction: TagReduction = "mean",
    weight: Tensor | None = None,
    eps: float = 1.0,
) -> Tensor:
    """Binary cross-entropy between the image scores of the last classes and their tags (WILSON's L_CLS).

    Args:
        logits: (B, C, h, w) localizer maps, background included: it takes part in the soft-max only.
        tags: (B, n) for the LAST n channels: 1 present, 0 absent, -1 or NaN unknown. Unknown entries are left out.
        aggregation: "ngwp" (with the focal penalty), "attention" or "gap".
        reduction: "none" gives (B, n) with 0 at unknown entries; "mean" the mean over the known entries (0 when
            there is none); "sum" the sum over an image's known tags, mean over the images.
        weight: multiplies each entry; broadcasts to (B, n). "mean" is then the weighted mean.
        eps: of "ngwp", see :func:`ngwp`.

    Returns:
        A scalar, or (B, n).
    """
    n_tags = tags.shape[1]
    if aggregation == "ngwp":
        scores = ngwp_focal(logits, eps=eps)
    elif aggregation == "attention":
        scores = attention_pool(logits)
    else:
        scores = global_average(logits)
    scores = scores[:, scores.shape[1] - n_tags :]
    known = tags >= 0  # False for NaN
    wanted = torch.where(known, tags, 0).to(scores.dtype)
    entry_weight = known.to(scores.dtype)
    if weight is not None:
        entry_weight = entry_weight * weight.to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none") * entry_weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum(dim=1).mean()
    total_weight = entry_weight.sum()
    return losses.sum() / torch.where(total_weight > 0, total_weight, 1.0)


def _pooled(logits: Tensor, soft: Tensor, eps: float) -> Tensor:
    return (logits * soft).sum(dim=(2, 3)) / (eps + soft.sum(dim=(2, 3)))


def _penalty(soft: Tensor, power: float, floor: float) -> Tensor:
    covered = soft.mean(dim=(2, 3))
    return (1.0 - covered) ** power * torch.log(floor + covered)
