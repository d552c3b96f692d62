"""RECALL's loss: every channel from the first step on, but only pixels of classes seen so far count.

Source: Maracani, Michieli, Toldo, Zanuttigh, "RECALL: Replay-based Continual Learning in Semantic Segmentation", ICCV
2021, and its released code. What it does to labels and to the order of samples is in :mod:`cilseg.data.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.pixel import cross_entropy, reduce_pixels


def seen_mask(target: Tensor, seen_ids: Sequence[int]) -> Tensor:
    """Return (B, H, W) bool: the pixels whose label is among ``seen_ids`` (background too if it is listed)."""
    return torch.isin(target, torch.as_tensor(list(seen_ids), dtype=target.dtype, device=target.device))


def seen_cross_entropy(logits: Tensor, target: Tensor, *, seen_ids: Sequence[int]) -> Tensor:
    """Cross-entropy over all channels, averaged over the pixels of classes seen so far.

    Args:
        logits: (B, C_all, H, W), channels of later classes included; they learn as negatives.
        target: (B, H, W) class ids; void and other ids leave numerator and denominator.
        seen_ids: background, old and new classes of the step.

    Returns:
        Scalar, 0 when no pixel counts.
    """
    counts = seen_mask(target, seen_ids)
    labels = torch.where(counts, target.long(), VOID_ID)
    return reduce_pixels(cross_entropy(logits, labels, reduction="none"), counts, reduction="valid_mean")
