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

_NEAR = 0.5
"""1 - 1 / 2: the weight of a class with a lift of 2."""
_NOWHERE = 1e-4
"""A class that the old model hardly sees anywhere is no look-alike."""


def look_alike_weights(claimed: Tensor, everywhere: Tensor) -> Tensor:
    """Return how far the old model's answer speaks for a new class, (n_new, n_old) in 0 .. 1; background speaks not.

    An old model answers "horse" on cows: its word for what it does not know. The *lift* of an old class is how much
    more of it the old model sees where a new class is claimed than elsewhere in the same images; the weight is
    ``1 - 1 / lift``, and that of the nearest look-alike is raised to 1 when its lift is at least 2. A class that is
    rare among the answers there (people beside cows, claimed by mistake) counts less: a class with less than half of
    the main one's score has twice that ratio as a factor. The matrix takes
    the place of the similarities of class names of RaSP (Roy et al., "RaSP: Relation-aware Semantic Prior for
    Weakly-supervised Incremental Segmentation", 2023) and is read from the images themselves.

    Args:
        claimed: (n_new, n_old) mean score of each old class over the pixels of a new one, weighted by its claim.
        everywhere: (n_new, n_old) mean score over all pixels of the images that show the new class.
    """
    weights = (1.0 - (everywhere + _NOWHERE) / (claimed + _NOWHERE)).clamp(min=0.0)
    weights[:, 0] = 0.0
    weights = weights / weights.amax(dim=1, keepdim=True).clamp(min=_NEAR)
    main = claimed[:, 1:].amax(dim=1, keepdim=True).clamp(min=1e-9)
    return weights * (2.0 * claimed / main).clamp(max=1.0)


def with_look_alikes(scores: Tensor, old_scores: Tensor, weights: Tensor, tags: Tensor) -> Tensor:
    """Let the old model's answer for look-alikes speak for the new classes that an image shows.

    Args:
        scores: (1, C, h, w) of one image, sum 1 per pixel.
        old_scores: (1, n_old, h, w) sigmoids of the old model.
        weights: (n_new, n_old), see :func:`look_alike_weights`.
        tags: (C - 1,) 1 present, 0 absent, -1 unknown; an old class tagged present speaks for itself alone.

    Returns:
        (1, C, h, w), sum 1 per pixel.
    """
    n_old = old_scores.shape[1]
    result = scores.clone()
    free = torch.ones(n_old, device=scores.device)
    free[1:] = (tags[: n_old - 1] <= 0).to(free.dtype)
    for new in range(weights.shape[0]):
        if tags[n_old - 1 + new] <= 0:
            continue
        weight = (weights[new] * free)[:, None, None]
        spoken = (weight * old_scores[0]).amax(dim=0)
        result[0, n_old + new] = 1.0 - (1.0 - result[0, n_old + new]) * (1.0 - spoken)
        result[0, :n_old] *= 1.0 - weight
    return result / result.sum(dim=1, keepdim=True).clamp(min=1e-6)


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
