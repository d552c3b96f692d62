"""Local POD: distil pooled statistics of intermediate features.

Source: Douillard, Chen, Dapogny, Cord, "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR
2021, eq. 3 to 6, and its released code. Squares of features overflow float16, so all of this is float32 at
least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cilseg.errors import InputError
from cilseg.losses.precision import at_least_float32

POD_SCALES = (1, 2, 4)


def fold_new_logits(logits: Tensor, *, n_old: int) -> Tensor:
    """Add the logits of new classes to the background's, so that the old and the new model have as many channels.

    Args:
        logits: (B, C, h, w).
        n_old: number of old channels, background included.

    Returns:
        (B, n_old, h, w).
    """
    background = logits[:, :1] + logits[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:n_old]], dim=1)


def local_pod_embedding(features: Tensor, *, scales: Sequence[int] = POD_SCALES) -> Tensor:
    """Squared features averaged over the rows and the columns of every cell of a pyramid.

    At scale s the map is cut into s x s square cells of ``floor(w / s)``; as in the released code the width alone sets
    the size, and what the floor leaves over is not pooled.

    Args:
        features: (B, D, h, w), h >= w or the last rows of cells are short.
        scales: cells per side.

    Returns:
        (B, sum_s 2 s^2 D floor(w / s)), per cell the means over the width, then over the height.

    Raises:
        InputError: a map with fewer columns than cells, or too low for its square cells.
    """
    squared = at_least_float32(features) ** 2
    height, width = squared.shape[-2:]
    parts: list[Tensor] = []
    for scale in scales:
        k = width // scale
        if not k or (scale - 1) * k >= height:
            raise InputError(
                f"A map of {height} x {width} has no {scale} x {scale} square cells; use a larger crop or fewer scales."
            )
        for top in range(0, scale * k, k):
            for left in range(0, scale * k, k):
                cell = squared[:, :, top : top + k, left : left + k]
                parts += [cell.mean(dim=3).flatten(1), cell.mean(dim=2).flatten(1)]
    return torch.cat(parts, dim=1)


def pod_distance(features: Tensor, old_features: Tensor, *, scales: Sequence[int] = POD_SCALES) -> Tensor:
    """Euclidean distance of the two embeddings.

    Args:
        features: (B, D, h, w).
        old_features: the same of the old model; no gradient flows into it.
        scales: cells per side.

    Returns:
        (B,).
    """
    ours = local_pod_embedding(features, scales=scales)
    theirs = local_pod_embedding(old_features.detach(), scales=scales)
    distance: Tensor = torch.linalg.vector_norm(ours - theirs.to(ours.dtype), dim=1)
    return distance


def pod_loss(
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    *,
    logits: Tensor,
    old_logits: Tensor,
    feature_factor: float = 0.01,
    logit_factor: float = 0.0005,
    schedule: bool = True,
    scales: Sequence[int] = POD_SCALES,
) -> Tensor:
    """Local POD over intermediate features and the raw logits, averaged over the layers.

    Args:
        features: per layer (B, D_l, h_l, w_l): the four stages before their last activation, and the head's output.
        old_features: the same of the old model.
        logits: (B, C, h, w) at the stride of the features.
        old_logits: (B, n_old, h, w).
        feature_factor: of every feature layer; VOC 0.01, ADE20K 0.001.
        logit_factor: of the logits; VOC 0.0005 (disjoint 0.0001), ADE20K 0.00001.
        schedule: multiply by ``sqrt(C / n_new)``; without new classes the factor is 1.
        scales: cells per side.

    Returns:
        Scalar.

    Raises:
        InputError: another number of old layers than of new ones, or maps too small for the scales.
    """
    if len(features) != len(old_features):
        raise InputError(f"{len(features)} layers of the new model meet {len(old_features)} of the old one.")
    n_old, n_new = old_logits.shape[1], logits.shape[1] - old_logits.shape[1]
    if n_new < 0:
        raise InputError(f"The old model has {n_old} channels, the new one only {logits.shape[1]}.")
    folded = fold_new_logits(at_least_float32(logits), n_old=n_old)
    total = logit_factor * pod_distance(folded, old_logits, scales=scales).mean()
    for ours, theirs in zip(features, old_features, strict=True):
        total = total + feature_factor * pod_distance(ours, theirs, scales=scales).mean()
    scheduled = math.sqrt((n_old + n_new) / n_new) if schedule and n_new else 1.0
    return total * scheduled / (len(features) + 1)
