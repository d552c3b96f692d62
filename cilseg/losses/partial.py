"""Loss for points and scribbles: what nobody labelled is background, an old class, or a new class of the image.

Our own reconstruction: the points and scribbles version of MiB (Cermelli et al., T-PAMI, arXiv 2201.13338) has
published loaders but no published loss. This one carries MiB's background rule over to unlabelled pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.losses.precision import at_least_float32

_FLOOR = math.log(1e-12)
_NEVER = -1e30  # log of zero whose gradient is a number


class PartialLoss(NamedTuple):
    """Losses of a batch of partly labelled images."""

    per_pixel: Tensor  #: (B, H, W), 0 at void
    annotated: Tensor  #: scalar, mean over annotated pixels (0 without any)
    unlabelled: Tensor  #: scalar, mean over unlabelled pixels (0 without any)

    @property
    def total(self) -> Tensor:
        """Sum of the two means. One mean over all pixels would drown a few points among all the others."""
        return self.annotated + self.unlabelled


def partial_loss(
    logits: Tensor, target: Tensor, *, n_old: int, class_in_image: Tensor, objectness: Tensor | None = None
) -> PartialLoss:
    """Marginalised cross-entropy of partly labelled images.

    With ``S_old = sum_{k < n_old} p_k`` and ``S_x`` the sum over the new classes of the image: a pixel of a new class
    scores ``-log p_y``, a background stroke ``-log S_old``, an unlabelled pixel or one of an old class
    ``-log(S_old + S_x)``, or with objectness ``pi`` ``-log((1 - pi) S_old + pi S_x)``; void scores nothing.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) class ids, 254 unlabelled, 255 void.
        n_old: number of old channels, background included.
        class_in_image: (B, C), above 0 where the whole image (before any crop) shows a class; old columns do not
            matter.
        objectness: (B, H, W) in 0 .. 1, the prior of a pixel to be foreground.

    Returns:
        The loss per pixel and the two means.
    """
    logits = at_least_float32(logits)
    scores = logits.log_softmax(dim=1)
    new = (target >= n_old) & (target < logits.shape[1])
    labels = torch.where(new, target, 0).long()
    stroke = target == 0
    hidden = ((target > 0) & (target < n_old)) | (target == UNLABELLED_ID)

    old = scores[:, :n_old].logsumexp(dim=1)
    shown = (class_in_image > 0).clone()
    shown[:, :n_old] = False
    of_image = torch.where(shown[:, :, None, None], scores, _NEVER).logsumexp(dim=1).clamp(min=_NEVER)
    if objectness is None:
        either = torch.logaddexp(old, of_image)
    else:
        prior = objectness.to(logits.dtype)
        either = torch.logaddexp((1.0 - prior).log().clamp(min=_NEVER) + old, prior.log().clamp(min=_NEVER) + of_image)
    per_pixel = torch.where(new, -scores.gather(1, labels.unsqueeze(1)).squeeze(1), 0.0)
    per_pixel = torch.where(stroke, -old, per_pixel)
    per_pixel = torch.where(hidden, -either.clamp(min=_FLOOR), per_pixel)
    per_pixel = torch.where(target == VOID_ID, 0.0, per_pixel)
    annotated = new | stroke
    return PartialLoss(per_pixel, _mean(per_pixel, annotated), _mean(per_pixel, hidden))


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
