"""A few labelled pixels per image (points, scribbles): the others are a sum over what they may still be.

Our reconstruction of MiB with points and scribbles (Cermelli et al., arXiv 2201.13338), whose loss was never released:
it carries MiB's own marginalisation over to pixels that nobody labelled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.losses.precision import at_least_float32


def partial_annotation_map(
    logits: Tensor, target: Tensor, *, tags: Tensor, n_old: int, objectness: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood of every pixel under what is known about it.

    With ``p`` the soft-max, ``S_old`` the sum over background and old classes, ``S_x`` over new classes tagged as
    present: a labelled new class has ``p_y``; labelled background ``S_old``; an unlabelled pixel, or one labelled as
    an old class, ``S_old + S_x``, or ``(1 - pi) S_old + pi S_x`` with an objectness map; void nothing.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) channel ids, 254 unlabelled, 255 void.
        tags: (B, C - 1) over the foreground, 1 present; old columns do not matter.
        n_old: number of old channels, background included.
        objectness: (B, h, w) in 0 .. 1, how likely a pixel is on an object.

    Returns:
        The map (B, h, w), which pixels are annotated, and which are unlabelled (both (B, h, w) bool).
    """
    logits = at_least_float32(logits)
    n_classes = logits.shape[1]
    target = target.long()
    total = logits.logsumexp(dim=1)
    old = logits[:, :n_old].logsumexp(dim=1)
    is_new = (target >= n_old) & (target < n_classes)
    is_background = target == 0
    unlabelled = (target == UNLABELLED_ID) | ((target > 0) & (target < n_old))
    own = logits.gather(1, torch.where(is_new, target, 0).unsqueeze(1)).squeeze(1)
    present = (tags[:, n_old - 1 :] > 0)[:, :, None, None]
    tagged = torch.where(present, logits[:, n_old:], -torch.inf)
    if objectness is None:
        possible = torch.cat([old.unsqueeze(1), tagged], dim=1).logsumexp(dim=1) - total
    else:
        pi = objectness.to(logits.dtype)
        probabilities = (tagged - total.unsqueeze(1)).exp().sum(dim=1)
        possible = ((1.0 - pi) * (old - total).exp() + pi * probabilities).clamp(min=1e-12).log()
    value = torch.where(is_new, own - total, torch.where(is_background, old - total, possible))
    annotated = is_new | is_background
    return torch.where(target == VOID_ID, 0.0, -value), annotated, unlabelled


def partial_annotation_loss(
    logits: Tensor, target: Tensor, *, tags: Tensor, n_old: int, objectness: Tensor | None = None
) -> Tensor:
    """Mean over the annotated pixels plus mean over the unlabelled ones, so that a few points keep their weight.

    Arguments as in :func:`partial_annotation_map`.

    Returns:
        Scalar; a kind of pixel that the batch lacks adds nothing.
    """
    values, annotated, unlabelled = partial_annotation_map(
        logits, target, tags=tags, n_old=n_old, objectness=objectness
    )
    parts = [(values * where).sum() / where.sum().clamp(min=1) for where in (annotated, unlabelled)]
    return parts[0] + parts[1]
