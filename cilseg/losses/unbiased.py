"""Losses that know what "background" hides: old classes in a step's labels, new ones in the old model's answers.

Source: Cermelli, Mancini, Rota Bulo, Ricci, Caputo, "Modeling the Background for Incremental Learning in Semantic
Segmentation" (MiB), CVPR 2020, and its released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.pixel import Reduction, reduced
from cilseg.losses.precision import at_least_float32


def unbiased_ce(
    logits: Tensor, target: Tensor, *, n_old: int, ignore_id: int = VOID_ID, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy in which every old label, background included, means "background or any old class" (eq. 5).

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) channel ids; ids below ``n_old`` are not told apart.
        n_old: number of old channels, background included.
        ignore_id: pixels to leave out.
        reduction: "none" gives (B, h, w) with 0 at ignored pixels; "mean" is over all pixels, ignored ones included
            as zeros (the published code); "sum".

    Returns:
        (B, h, w) or a scalar.
    """
    logits = at_least_float32(logits)
    counts = target != ignore_id
    labels = torch.where(counts, target, 0).long()
    total = logits.logsumexp(dim=1)
    old = logits[:, :n_old].logsumexp(dim=1)
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    per_pixel = total - torch.where(labels < n_old, old, own)
    return reduced(torch.where(counts, per_pixel, 0.0), reduction)


def unbiased_kd(
    logits: Tensor, old_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Distillation in which the old background means "background or any new class" (eq. 8).

    The published code divides by the number of old channels; the paper's equation does not.

    Args:
        logits: (B, C, h, w).
        old_logits: (B, n_old, h, w) of the old model; no gradient flows into them.
        alpha: factor on the old logits before their soft-max; the student is not tempered.
        mask: (B, h, w) factor on every pixel; the mean is over all pixels all the same.
        reduction: "none" gives (B, h, w).

    Returns:
        (B, h, w) or a scalar.
    """
    logits = at_least_float32(logits)
    n_old = old_logits.shape[1]
    total = logits.logsumexp(dim=1, keepdim=True)
    # Background and new channels together; without new classes that is the background alone.
    background = torch.cat([logits[:, :1], logits[:, n_old:]], dim=1).logsumexp(dim=1, keepdim=True)
    log_probabilities = torch.cat([background, logits[:, 1:n_old]], dim=1) - total
    wanted = (at_least_float32(old_logits.detach()).to(logits.dtype) * alpha).softmax(dim=1)
    per_pixel = -(wanted * log_probabilities).mean(dim=1)
    if mask is not None:
        per_pixel = per_pixel * mask.to(per_pixel.dtype)
    return reduced(per_pixel, reduction)
