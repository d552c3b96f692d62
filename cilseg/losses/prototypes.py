"""Class prototypes in the space of body features, and the losses that hold them apart.

Source: Michieli and Zanuttigh, "Continual Semantic Segmentation via Repulsion-Attraction of Sparse and Disentangled
Latent Representations" (SDR), CVPR 2021. The released code cuts features of a class out of ``(B, D, h, w)`` as if it
were ``(D, -1)``, which mixes channels for more than one image; here are the paper's forms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32


class Prototypes(NamedTuple):
    """Running mean feature of each class."""

    means: Tensor  #: (C, D); zero for a class not met yet
    counts: Tensor  #: (C,) pixels that went into it


def labels_at(target: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Shrink a mask (B, H, W) to the size of a feature map by nearest neighbour, row ``floor(i * H / h)``."""
    return F.interpolate(target[:, None].float(), size=size_hw, mode="nearest")[:, 0].long()


@torch.no_grad()
def update_prototypes(
    prototypes: Prototypes, features: Tensor, labels: Tensor, *, skip_background: bool = False
) -> Prototypes:
    """Take a batch into the running means: ``P_c = (sum f + n_c P_c) / (n_c + m)`` (eq. 3).

    Args:
        prototypes: so far.
        features: (B, D, h, w).
        labels: (B, h, w) at the size of the features; void is left out.
        skip_background: leave channel 0 as it is, as in overlapped steps and in every later step, where background
            hides other classes.
    """
    n_classes = len(prototypes.counts)
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2).to(prototypes.means.dtype)
    ids = labels.flatten()
    known = (ids != VOID_ID) & (ids < n_classes)
    if skip_background:
        known &= ids != 0
    sums = torch.zeros_like(prototypes.means).index_add_(0, ids[known], flat[known])
    added = torch.bincount(ids[known], minlength=n_classes).to(prototypes.counts.dtype)
    counts = prototypes.counts + added
    means = (sums + prototypes.counts[:, None] * prototypes.means) / counts.clamp(min=1)[:, None]
    return Prototypes(torch.where((added > 0)[:, None], means, prototypes.means), counts)


def class_means(features: Tensor, labels: Tensor) -> tuple[list[int], Tensor]:
    """Return the ids present in ``labels`` (void left out), ascending, and their mean features (K, D)."""
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2)
    ids = labels.flatten()
    present = [int(c) for c in ids.unique().tolist() if c != VOID_ID]
    means = [flat[ids == c].mean(dim=0) for c in present]
    return present, torch.stack(means) if means else flat.new_zeros((0, flat.shape[1]))


def matching_loss(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Keep the means of the old classes' features at their prototypes (eq. 4).

    Args:
        features: (B, D, h, w).
        labels: (B, h, w) the old model's answers where the mask says background, 0 elsewhere; channel 0 is left out.
        prototypes: (C, D).

    Returns:
        Scalar: mean over the classes present and the channels; 0 without any.
    """
    present, means = class_means(features, torch.where(labels == 0, VOID_ID, labels))
    if not present:
        return features.sum() * 0.0
    return F.mse_loss(means, prototypes[present].to(means.dtype))


def attraction_loss(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Pull every feature towards the prototype of its class (eq. 5).

    Args:
        features: (B, D, h, w).
        labels: (B, h, w); background takes part, void does not.
        prototypes: (C, D).

    Returns:
        Scalar: mean over the classes present of the mean over their pixels and channels.
    """
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2)
    ids = labels.flatten()
    present = [int(c) for c in ids.unique().tolist() if c != VOID_ID]
    if not present:
        return features.sum() * 0.0
    own = [(flat[ids == c] - prototypes[c].to(flat.dtype)).square().mean() for c in present]
    return torch.stack(own).mean()


def repulsion_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Push the class means of a batch apart: mean over ordered pairs of ``1 / ||m_i - m_j||`` (eq. 6).

    Args:
        features: (B, D, h, w).
        labels: (B, h, w); background takes part, void does not.

    Returns:
        Scalar; 0 with fewer than two classes.
    """
    present, means = class_means(features, labels)
    if len(present) < 2:
        return features.sum() * 0.0
    first, second = torch.triu_indices(len(present), len(present), offset=1)
    return (means[first] - means[second]).norm(dim=1).reciprocal().mean()


def sparsity_loss(features: Tensor, labels: Tensor, *, eps: float = 1e-15) -> Tensor:
    """Leave room for later classes: features over their class's maximum, sum of exponentials over their sum (eq. 7).

    Void pixels and pixels without any activation are left out, where the released code counts the first as a class and
    explodes at the second.

    Args:
        features: (B, D, h, w), not negative.
        labels: (B, h, w).
        eps: keeps divisions finite.

    Returns:
        Scalar: mean over the pixels that count; 0 without any.
    """
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2)
    ids = labels.flatten()
    ratios = []
    for c in ids.unique().tolist():
        own = flat[ids == c]
        if c == VOID_ID:
            continue
        alive = own[(own != 0).any(dim=1)]
        scaled = alive / (own.max() + eps)
        ratios.append(scaled.exp().sum(dim=1) / scaled.sum(dim=1).clamp(min=eps))
    if not ratios or not sum(len(r) for r in ratios):
        return features.sum() * 0.0
    return torch.cat(ratios).mean()
