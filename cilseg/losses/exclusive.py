"""One pixel, one object: targets that join labels of new classes with the scores of the old model.

WILSON's target (Cermelli et al., CVPR 2022, eq. 7 and 8) lets a pixel be an old class and a new one at once: where a
cow is tagged, the old model's "horse" stays in the target beside the new "cow". Here an old class can have no more of a
pixel than a claimed new class leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32
from cilseg.losses.wilson import segmentation_target


class Target(NamedTuple):
    """What a step learns from; nothing here carries a gradient."""

    scores: Tensor  #: (B, C, H, W) in 0 .. 1
    weight: Tensor  #: (B, C, H, W): 1, or 0 where nobody knows


def claimed(labels: Tensor, confidence: Tensor | None, *, n_old: int, n_new: int) -> Tensor:
    """Return how far each new class claims each pixel, (B, n_new, H, W) in 0 .. 1.

    Args:
        labels: (B, H, W) channel ids; those below ``n_old``, unlabelled and void pixels claim nothing.
        confidence: (B, H, W) uint8, 255 is certain; None: labels are certain.
        n_old: old channels, background included.
        n_new: new channels.
    """
    hot = torch.stack([labels == n_old + k for k in range(n_new)], dim=1).float()
    return hot if confidence is None else hot * (confidence.float() / 255.0)[:, None]


@torch.no_grad()
def exclusive_target(
    old_logits: Tensor,
    labels: Tensor,
    confidence: Tensor | None = None,
    *,
    n_new: int,
    n_drawn: int | None = None,
    exclusive: bool = True,
) -> Target:
    """Join labels and the old model's scores.

    | label of a pixel | old classes | new classes |
    |---|---|---|
    | unlabelled | scores of the old model | absent |
    | a new class | scores of the old model, at most what the claim leaves | the claim |
    | an old class (drawn by hand) | that class alone | absent |
    | background (drawn by hand) | background; classes nobody drew: the old model | not known |
    | void | not known | not known |

    Args:
        old_logits: (B, n_old, H, W).
        labels: (B, H, W) channel ids, ``UNLABELLED_ID`` or ``VOID_ID``.
        confidence: (B, H, W) uint8 of labels of new classes, 255 is certain; None: all are.
        n_new: new channels.
        n_drawn: channels, background included, that drawn labels know; None: all old ones.
        exclusive: False leaves the scores of old classes as they are where a new class is claimed.
    """
    n_old = old_logits.shape[1]
    drawn_channels = n_old if n_drawn is None else n_drawn
    claim = claimed(labels, confidence, n_old=n_old, n_new=n_new)
    nothing = torch.zeros_like(old_logits[:, 1:], dtype=claim.dtype)
    soft = torch.cat([1.0 - claim.sum(dim=1, keepdim=True), nothing, claim], dim=1)
    old = at_least_float32(old_logits).sigmoid()
    scores = segmentation_target(old, soft, n_old=n_old, suppress_claimed=exclusive)
    weight = (labels != VOID_ID)[:, None].to(scores.dtype).repeat(1, n_old + n_new, 1, 1)
    drawn = (labels < n_old)[:, None]
    if drawn.any():
        hot = F.one_hot(torch.where(drawn[:, 0], labels, 0), n_old).movedim(-1, 1).to(scores.dtype)
        background = labels[:, None] == 0
        later = torch.where(background, old[:, drawn_channels:], hot[:, drawn_channels:])
        known = torch.cat([hot[:, :drawn_channels], later, torch.zeros_like(scores[:, n_old:])], dim=1)
        scores = torch.where(drawn, known, scores)
        weight[:, n_old:] = torch.where(background, 0.0, weight[:, n_old:])
    return Target(scores, weight)


def exclusive_loss(logits: Tensor, target: Target) -> Tensor:
    """Binary cross-entropy per class, summed over classes, mean over pixels that anything is known of.

    Args:
        logits: (B, C, H, W).
        target: see :func:`exclusive_target`.

    Returns:
        Scalar; 0 when nothing is known.
    """
    losses = F.binary_cross_entropy_with_logits(
        at_least_float32(logits), target.scores.to(at_least_float32(logits).dtype), reduction="none"
    )
    counts = (target.weight.amax(dim=1) > 0).sum().clamp(min=1)
    return (losses * target.weight).sum() / counts
