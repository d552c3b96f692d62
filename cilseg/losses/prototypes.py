"""SDR: class prototypes in the backbone's feature space, and the losses that use them.

Source: Michieli, Zanuttigh, "Continual Semantic Segmentation via Repulsion-Attraction of Sparse and Disentangled
Latent Representations", CVPR 2021, eq. 3 to 8. These are the paper's formulas. The released code indexes the features
without moving the channels last, so that its "class means" mix channels, divides the attraction by the number of
classes inside the loop over them, and lets dead pixels dominate the sparsity loss; none of that is repeated here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32

_TINY = 1e-15


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample labels at the size of a feature map (nearest: row ``floor(i H / h)``).

    Args:
        labels: (B, H, W) integers below 2^24.
        size: (h, w).

    Returns:
        (B, h, w) int64.
    """
    return F.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()


def class_sums(features: Tensor, labels: Tensor, *, n_classes: int) -> tuple[Tensor, Tensor]:
    """Sum the features of every class.

    Args:
        features: (B, D, h, w).
        labels: (B, h, w) class ids; void and ids from ``n_classes`` on are left out.
        n_classes: C.

    Returns:
        Sums (C, D) and numbers of pixels (C,), both in the dtype of the features (float32 at least).
    """
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2)
    ids = labels.flatten().long()
    used = ids < n_classes
    flat, ids = flat[used], ids[used]
    sums = flat.new_zeros(n_classes, flat.shape[1]).index_add(0, ids, flat)
    return sums, torch.bincount(ids, minlength=n_classes).to(flat.dtype)


@torch.no_grad()
def update_prototypes(
    prototypes: Tensor, counts: Tensor, *, features: Tensor, labels: Tensor, skip_background: bool
) -> tuple[Tensor, Tensor]:
    """Add one batch to the running means: ``P_c = (n_c P_c + sum f) / (n_c + m)``.

    Old classes stay as they are where the labels do not show them.

    Args:
        prototypes: (C, D), zero for classes not seen yet.
        counts: (C,) pixels behind each.
        features: (B, D, h, w).
        labels: (B, h, w) at the size of the features (:func:`labels_at`).
        skip_background: true in overlap steps and in every step after the first: background hides other classes.

    Returns:
        New prototypes and counts, in the dtype of the old ones.
    """
    sums, pixels = class_sums(features.detach().to(prototypes.dtype), labels, n_classes=len(prototypes))
    if skip_background:
        sums[0], pixels[0] = 0.0, 0.0
    sums, pixels = sums.to(prototypes.dtype), pixels.to(counts.dtype)
    total = counts + pixels
    means = (counts.unsqueeze(1) * prototypes + sums) / total.clamp(min=1).unsqueeze(1)
    return torch.where((pixels > 0).unsqueeze(1), means, prototypes), total


def hidden_old_labels(old_logits: Tensor, labels: Tensor) -> Tensor:
    """What the old model sees where the labels say background: the classes that prototype matching is about.

    Args:
        old_logits: (B, n_old, H, W).
        labels: (B, h, w) at the size of the features.

    Returns:
        (B, h, w) int64, 0 where nothing is to be matched.
    """
    predicted = labels_at(old_logits.argmax(dim=1), (labels.shape[-2], labels.shape[-1]))
    return torch.where(labels == 0, predicted, 0)


def matching_loss(features: Tensor, hidden_labels: Tensor, prototypes: Tensor) -> Tensor:
    """Pull this batch's means of old classes to their prototypes (eq. 3); mean over channels, then classes.

    Args:
        features: (B, D, h, w).
        hidden_labels: (B, h, w) of :func:`hidden_old_labels`; background is left out.
        prototypes: (C, D).

    Returns:
        Scalar, 0 when no old class shows.
    """
    sums, pixels = class_sums(features, hidden_labels, n_classes=len(prototypes))
    means = sums / pixels.clamp(min=1).unsqueeze(1)
    shown = pixels > 0
    shown[0] = False
    distances = ((means - prototypes.detach().to(means.dtype)) ** 2).mean(dim=1)
    return torch.where(shown, distances, 0.0).sum() / shown.sum().clamp(min=1)


def attraction_loss(features: Tensor, labels: Tensor, prototypes: Tensor, *, skip_background: bool = False) -> Tensor:
    """Pull the features of every labelled class to its prototype (eq. 5).

    Args:
        features: (B, D, h, w).
        labels: (B, h, w) at the size of the features.
        prototypes: (C, D).
        skip_background: leave background out, which has no prototype in overlap steps; the released code pulls it to
            the zero vector then.

    Returns:
        Scalar: mean over pixels and channels of a class, then over the classes that show; 0 when none does.
    """
    wanted = prototypes.detach().to(at_least_float32(features).dtype)
    safe = torch.where(labels < len(prototypes), labels, 0).long()
    distances = ((at_least_float32(features) - wanted[safe].movedim(-1, 1)) ** 2).mean(dim=1, keepdim=True)
    sums, pixels = class_sums(distances, labels, n_classes=len(prototypes))
    shown = pixels > 0
    if skip_background:
        shown[0] = False
    per_class = sums.squeeze(1) / pixels.clamp(min=1)
    return torch.where(shown, per_class, 0.0).sum() / shown.sum().clamp(min=1)


def repulsion_loss(features: Tensor, labels: Tensor, *, n_classes: int) -> Tensor:
    """Push this batch's class means apart: mean of ``1 / |m_i - m_j|`` over pairs of classes (eq. 6).

    Args:
        features: (B, D, h, w).
        labels: (B, h, w) at the size of the features; void is left out, background counts.
        n_classes: C.

    Returns:
        Scalar, 0 with fewer than two classes. Means that coincide are taken 1e-6 apart.
    """
    sums, pixels = class_sums(features, labels, n_classes=n_classes)
    shown = pixels > 0
    means = sums[shown] / pixels[shown].unsqueeze(1)
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    distances = torch.linalg.vector_norm(means[first] - means[second], dim=1)
    inverse: Tensor = 1.0 / distances.clamp(min=1e-6)
    return inverse.sum() / max(len(distances), 1)


def sparsity_loss(features: Tensor, labels: Tensor, *, ignore_id: int = VOID_ID) -> Tensor:
    """Make the features of a pixel few and large (eq. 8): ``sum_j exp(f_j) / sum_j f_j``, mean over pixels.

    Features are first divided by the largest one of their class in the batch. Void pixels and pixels whose features are
    all zero are left out, and the sum is at least 1e-15.

    Args:
        features: (B, D, h, w), after an activation without negative values.
        labels: (B, h, w) at the size of the features.
        ignore_id: void.

    Returns:
        Scalar, 0 when no pixel is left.
    """
    flat = at_least_float32(features).movedim(1, -1).flatten(0, 2)
    ids = labels.flatten().long()
    used = (ids != ignore_id) & (flat != 0).any(dim=1)
    flat, ids = flat[used], ids[used]
    if not len(flat):
        return at_least_float32(features).sum() * 0.0
    classes, position = torch.unique(ids, return_inverse=True)
    largest = torch.stack([flat[position == i].max() for i in range(len(classes))])
    normalised = flat / (largest[position].unsqueeze(1) + _TINY)
    return (normalised.exp().sum(dim=1) / normalised.sum(dim=1).clamp(min=_TINY)).mean()
