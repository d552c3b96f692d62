"""MiB's losses: old classes hide in the labels' background, new ones in the old model's.

Source: Cermelli, Mancini, Rota Bulo, Ricci, Caputo, "Modeling the Background for Incremental Learning in Semantic
Segmentation", CVPR 2020, and its released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.pixel import Reduction, reduce_pixels
from cilseg.losses.precision import at_least_float32


def unbiased_ce(
    logits: Tensor,
    target: Tensor,
    *,
    n_old: int,
    ignore_id: int = VOID_ID,
    reduction: Reduction | Literal["valid_mean"] = "mean",
) -> Tensor:
    """Cross-entropy whose background is "background or any old class" (eq. 4 and 5).

    A label below ``n_old`` scores ``-log sum_{k < n_old} p_k``, another one ``-log p_y``.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integer class ids, ``ignore_id`` where a pixel does not count.
        n_old: number of old channels, background included; 1 gives the plain cross-entropy.
        ignore_id: the id to leave out.
        reduction: "none" gives (B, H, W) with 0 at ignored pixels; "mean" divides by all pixels, ignored ones
            included, as the released code does; "valid_mean" by the pixels that count (0 when none does); "sum".

    Returns:
        (B, H, W) or a scalar, float64 when the logits are, float32 otherwise.

    Raises:
        InputError: ``n_old`` outside 1 .. C.
    """
    if not 1 <= n_old <= logits.shape[1]:
        raise InputError(f"n_old counts background and lies in 1-{logits.shape[1]} (the channels), got {n_old}.")
    logits = at_least_float32(logits)
    counts = target != ignore_id
    labels = torch.where(counts, target, 0).long()
    background = logits[:, :n_old].logsumexp(dim=1)
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    score = torch.where(labels < n_old, background, own)
    per_pixel = torch.where(counts, logits.logsumexp(dim=1) - score, 0.0)
    return reduce_pixels(per_pixel, counts, reduction=reduction)


def unbiased_kd(
    logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distil the old model's soft-max, its background matched by "background or any new class" (eq. 7 and 8).

    Divided by the number of old channels as in the released code; the paper's equation has no such factor. Without
    new classes it is the plain distillation (the released code fails there).

    Args:
        logits: (B, C, H, W).
        old_logits: (B, n_old, H, W) of the old model, n_old <= C; no gradient flows into them.
        alpha: multiplies the old logits; above 1 sharpens the teacher.
        mask: (B, H, W), multiplies the loss of a pixel; "mean" still divides by all pixels.
        reduction: "none", "mean" or "sum" over images and pixels.

    Returns:
        (B, H, W) or a scalar.

    Raises:
        InputError: more old channels than channels.
    """
    n_old = old_logits.shape[1]
    if n_old > logits.shape[1]:
        raise InputError(f"The old model has {n_old} channels, the new one only {logits.shape[1]}; swap the arguments?")
    logits = at_least_float32(logits)
    wanted = (at_least_float32(old_logits.detach()).to(logits.dtype) * alpha).softmax(dim=1)
    everything = logits.logsumexp(dim=1, keepdim=True)
    background = torch.cat([logits[:, :1], logits[:, n_old:]], dim=1).logsumexp(dim=1, keepdim=True)
    ours = torch.cat([background, logits[:, 1:n_old]], dim=1) - everything
    per_pixel = -(wanted * ours).mean(dim=1)
    if mask is not None:
        per_pixel = per_pixel * mask.to(per_pixel.dtype)
    return reduce_pixels(per_pixel, reduction=reduction)
