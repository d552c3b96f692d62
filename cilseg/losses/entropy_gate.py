"""PLOP's pseudo-labels: background pixels get the old model's class where its entropy is low for that class.

Source: Douillard, Chen, Dapogny, Cord, "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR
2021, section 3.3, and its released code, which differs from the paper in three ways that the ``reference`` form keeps:
the entropy is divided twice too often, so that only two or three of a hundred bins are ever reached; the running sum
that looks for the median adds the index of a bin instead of its count; an image without background gets weight 0.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.pixel import cross_entropy
from cilseg.losses.precision import at_least_float32

GateForm = Literal["paper", "reference"]
_BINS = 100
_MOST_VALUES = 50_000_000
"""Entropies kept for exact medians; beyond, every second one is dropped."""


def normalised_entropy(old_logits: Tensor, *, n_classes: int, form: GateForm = "paper") -> Tensor:
    """Entropy of the old model's soft-max, in 0 .. 1.

    Args:
        old_logits: (B, n_old, h, w).
        n_classes: C, old and new; used by the ``reference`` form alone.
        form: ``paper``: ``H / ln(n_old)``. ``reference``: the mean over the channels instead of the sum, and divided
            by ``ln(C)`` once more.

    Returns:
        (B, h, w).
    """
    q = at_least_float32(old_logits).softmax(dim=1)
    n_old = old_logits.shape[1]
    if form == "paper":
        return -torch.special.xlogy(q, q).sum(dim=1) / math.log(n_old)
    return -(q * (q + 1e-8).log()).mean(dim=1) / math.log(n_old) / math.log(n_classes)


class EntropyThresholds:
    """Per class the entropy below which the old model's answer is taken, measured over a training set.

    Feed every batch to :meth:`update`, then read :attr:`values`.

    Args:
        n_old: number of old channels, background included.
        n_classes: C.
        form: ``paper``: the median over the background pixels where the class was predicted, 0 for a class that never
            was. ``reference``: as the released code interpolates it from a histogram.
        floor: lowest threshold of the ``reference`` form; that of a class never predicted.
    """

    def __init__(self, *, n_old: int, n_classes: int, form: GateForm = "paper", floor: float = 0.001) -> None:
        self.n_old, self.n_classes, self.form, self.floor = n_old, n_classes, form, floor
        self.histogram = np.zeros((n_classes, _BINS), dtype=np.int64)
        self._entropies: list[list[npt.NDArray[np.floating]]] = [[] for _ in range(n_old)]
        self._values: Tensor | None = None

    @torch.no_grad()
    def update(self, old_logits: Tensor, target: Tensor) -> None:
        """Count the background pixels of a batch; (B, n_old, h, w) and (B, h, w)."""
        self._values = None
        background = target == 0
        entropy = normalised_entropy(old_logits, n_classes=self.n_classes, form=self.form)[background].cpu().numpy()
        predicted = old_logits.argmax(dim=1)[background].cpu().numpy()
        if self.form == "reference":
            bins = np.clip((entropy * _BINS).astype(np.int64), 0, _BINS - 1)
            np.add.at(self.histogram, (predicted, bins), 1)
            return
        for k in range(self.n_old):
            self._entropies[k].append(entropy[predicted == k])
        if sum(len(part) for parts in self._entropies for part in parts) > _MOST_VALUES:
            self._entropies = [[np.concatenate(parts)[::2]] for parts in self._entropies]

    @property
    def values(self) -> Tensor:
        """Thresholds, (n_classes,) float64; those of new classes are never used."""
        if self._values is None:
            if self.form == "reference":
                found = [histogram_median(row, floor=self.floor) for row in self.histogram]
            else:
                pooled = [np.concatenate([*parts, np.zeros(0)]) for parts in self._entropies]
                found = [float(np.median(v)) if v.size else 0.0 for v in pooled]
                found += [0.0] * (self.n_classes - self.n_old)
            self._values = torch.tensor(found, dtype=torch.float64)
        return self._values


def histogram_median(counts: npt.NDArray[np.integer], *, floor: float) -> float:
    """The "median" of the released code: interpolated in the first bin k with ``running <= half <= running + n_k``.

    ``running`` grows by the bin's index instead of its count. Where no bin fits, the last one is divided by zero:
    infinity when ``half`` is the larger, else the floor.

    Args:
        counts: (bins,) pixels per bin of 0 .. 1.
        floor: lowest result; that of an empty histogram.
    """
    bins, half, running = len(counts), counts.sum() / 2, 0
    if not counts.any():
        return floor
    for k in range(bins):
        if running <= half <= running + counts[k]:
            break
        running += k
    else:
        return math.inf if half > running else floor
    inside = (half - running) / counts[k] if counts[k] else 0.0
    return max(k / bins + inside / bins, floor)


@torch.no_grad()
def gated_labels(old_logits: Tensor, target: Tensor, thresholds: EntropyThresholds) -> tuple[Tensor, Tensor]:
    """Replace the background of a mask by the sure answers of the old model.

    Args:
        old_logits: (B, n_old, h, w).
        target: (B, h, w) channel ids; everything below ``n_old`` counts as background, void stays void.
        thresholds: see :class:`EntropyThresholds`.

    Returns:
        Labels (B, h, w), void where the old model is not sure, and the weight of every image (B,): the share of its
        background that got a label (eq. 8); 1 without background in the ``paper`` form, 0 in the ``reference`` form.
    """
    entropy = normalised_entropy(old_logits, n_classes=thresholds.n_classes, form=thresholds.form)
    predicted = old_logits.argmax(dim=1)
    cut = thresholds.values.to(device=entropy.device, dtype=entropy.dtype)
    background = target < thresholds.n_old
    accepted = background & (entropy < cut[predicted])
    labels = torch.where(background, torch.where(accepted, predicted, VOID_ID), target)
    count, area = accepted.sum(dim=(1, 2)).to(entropy.dtype), background.sum(dim=(1, 2)).to(entropy.dtype)
    if thresholds.form == "reference":
        return labels, count / (area + 1e-6)
    return labels, torch.where(area > 0, count / area.clamp(min=1), 1.0)


def weighted_cross_entropy(logits: Tensor, target: Tensor, image_weight: Tensor) -> Tensor:
    """Cross-entropy times the weight of its image, mean over all pixels, void ones included as zeros.

    (B, C, h, w), (B, h, w), (B,) -> scalar.
    """
    per_pixel = cross_entropy(logits, target, reduction="none")
    return (per_pixel * image_weight.to(per_pixel.dtype)[:, None, None]).mean()
