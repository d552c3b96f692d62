"""PLOP's pseudo-labels: confident predictions of the old model replace background labels.

Source: Douillard et al., CVPR 2021, eq. 7 to 9, and its released code. Two forms of the gate:

- ``paper``: entropy over ``ln n_old``, threshold = median of each predicted class;
- ``reference``: the released code, which divides by ``n_old`` and by ``ln C`` once more (so the scores fill the
  lowest few of its 100 bins) and whose median adds up bin numbers where it should add counts. It accepts far more
  pixels than half, up to all of them. For replication only.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.pixel import cross_entropy
from cilseg.losses.precision import at_least_float32

GateForm = Literal["paper", "reference"]
N_BINS = 100
#: lowest threshold of the reference form on VOC's overlap tasks; 0.5 on the disjoint ones, where it opens the gate
REFERENCE_FLOOR = 0.001


class GatedLabels(NamedTuple):
    """Labels of a batch after the gate; nothing here carries a gradient."""

    labels: Tensor  #: (B, H, W) int64, void where the old model was not sure
    accepted: Tensor  #: (B, H, W) bool, background pixels that took the old model's class
    image_weight: Tensor  #: (B,) nu, the share of background pixels that were accepted


def entropy_score(old_logits: Tensor, *, n_classes: int | None = None, form: GateForm = "paper") -> Tensor:
    """Entropy of the old model's soft-max per pixel.

    Args:
        old_logits: (B, n_old, H, W), n_old >= 2.
        n_classes: C, all classes with the new ones; the reference form alone needs it.
        form: "paper": ``H / ln n_old`` in 0 .. 1; "reference": ``H / (n_old ln n_old ln C)``, 1e-8 in the
            logarithm.

    Returns:
        (B, H, W), float64 when the logits are, float32 otherwise.

    Raises:
        InputError: fewer than two old channels, or the reference form without ``n_classes``.
    """
    n_old = old_logits.shape[1]
    if n_old < 2:
        raise InputError(f"The entropy of {n_old} channel says nothing; the gate needs an old class beside background.")
    logits = at_least_float32(old_logits.detach())
    probabilities = logits.softmax(dim=1)
    if form == "paper":
        return -(probabilities * logits.log_softmax(dim=1)).sum(dim=1) / math.log(n_old)
    if n_classes is None:
        raise InputError("The reference form of the gate divides by ln C: give n_classes, the new classes included.")
    mean_entropy = -(probabilities * (probabilities + 1e-8).log()).mean(dim=1) / math.log(n_old)
    return mean_entropy / math.log(n_classes)


def reference_thresholds(histogram: Tensor, *, floor: float = REFERENCE_FLOOR) -> Tensor:
    """Thresholds by the released code's interpolation, its running sum of bin numbers included.

    Args:
        histogram: (C, bins) counts of scores on 0 .. 1 per predicted class.
        floor: lowest threshold, also that of a class never predicted.

    Returns:
        (C,) float64; infinite where the search runs past the last bin, which accepts every pixel of the class.
    """
    n_bins = histogram.shape[1]
    thresholds = []
    for counts in histogram.tolist():
        half, running, found = sum(counts) / 2, 0.0, floor
        if half:
            for index, count in enumerate(counts):
                if running <= half <= running + count:
                    break
                running += index
            ahead = half - running
            inside = ahead / counts[index] if counts[index] else (math.copysign(math.inf, ahead) if ahead else 0.0)
            found = max((index + inside) / n_bins, floor)
        thresholds.append(found)
    return torch.tensor(thresholds, dtype=torch.float64)


class ThresholdPass:
    """Collects the scores of one pass over the training images and gives the threshold of every class.

    The paper form keeps every score (4 bytes a background pixel, in float32; ``max_per_class`` bounds it by keeping a
    random sample of that size per class), the reference form a histogram.

    Args:
        n_classes: C, all classes with the new ones.
        form: see the module.
        floor: lowest threshold; None: 0 for the paper form, 0.001 for the reference form.
        max_per_class: None keeps all scores; the median of a sample of a million is off by less than a tenth of a
            percentile in most runs.
        seed: of the sample.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        form: GateForm = "paper",
        floor: float | None = None,
        max_per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        self.n_classes, self.form = n_classes, form
        self.floor = floor if floor is not None else (0.0 if form == "paper" else REFERENCE_FLOOR)
        self.histogram = torch.zeros(n_classes, N_BINS, dtype=torch.int64)
        self._max, self._generator = max_per_class, torch.Generator().manual_seed(seed)
        self._scores: list[list[Tensor]] = [[] for _ in range(n_classes)]
        self._keys: list[list[Tensor]] = [[] for _ in range(n_classes)]

    @torch.no_grad()
    def update(self, old_logits: Tensor, target: Tensor) -> None:
        """Add one batch.

        Args:
            old_logits: (B, n_old, H, W).
            target: (B, H, W) labels; pixels labelled background (0) alone count.
        """
        background = target == 0
        scores = entropy_score(old_logits, n_classes=self.n_classes, form=self.form)[background].cpu()
        predicted = old_logits.argmax(dim=1)[background].cpu()
        if self.form == "reference":
            bins = (scores * N_BINS).long().clamp(0, N_BINS - 1)
            flat = torch.bincount(predicted * N_BINS + bins, minlength=self.n_classes * N_BINS)
            self.histogram += flat.view(self.n_classes, N_BINS)
            return
        for index in torch.unique(predicted).tolist():
            self._keep(index, scores[predicted == index])

    def _keep(self, index: int, scores: Tensor) -> None:
        self._scores[index].append(scores)
        if self._max is None:
            return
        # The scores with the smallest of one random key each are a uniform sample of all that ever came.
        self._keys[index].append(torch.rand(len(scores), generator=self._generator))
        keys = torch.cat(self._keys[index])
        if len(keys) > self._max:
            kept = keys.topk(self._max, largest=False).indices
            self._keys[index] = [keys[kept]]
            self._scores[index] = [torch.cat(self._scores[index])[kept]]

    def thresholds(self) -> Tensor:
        """Return (C,) float64; ``floor`` for a class that was never predicted."""
        if self.form == "reference":
            return reference_thresholds(self.histogram, floor=self.floor)
        medians = [_median(torch.cat(parts)) if parts else self.floor for parts in self._scores]
        return torch.tensor(medians, dtype=torch.float64).clamp(min=self.floor)


def _median(values: Tensor) -> float:
    """Mean of the two middle values (torch's median takes the lower one)."""
    ordered = values.double().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


@torch.no_grad()
def gated_labels(
    old_logits: Tensor,
    target: Tensor,
    *,
    thresholds: Tensor,
    n_classes: int | None = None,
    form: GateForm = "paper",
    ignore_id: int = VOID_ID,
) -> GatedLabels:
    """Replace background labels by the old model's class where it is sure, by void where it is not.

    Args:
        old_logits: (B, n_old, H, W).
        target: (B, H, W) labels; those below n_old count as background, new classes and void stay.
        thresholds: (C,) or (n_old,) of :class:`ThresholdPass`; a pixel is accepted strictly below.
        n_classes: as in :func:`entropy_score`.
        form: the form the thresholds were made with. An image without background weighs 1 in the paper form, 0 in the
            reference form (which silences its loss).
        ignore_id: void.

    Returns:
        Labels, accepted pixels and image weights.
    """
    score = entropy_score(old_logits, n_classes=n_classes, form=form)
    predicted = old_logits.argmax(dim=1)
    background = (target < old_logits.shape[1]) & (target != ignore_id)
    limit = thresholds.to(score.device)[predicted]
    accepted = background & (score < limit)
    labels = torch.where(background, torch.where(accepted, predicted, ignore_id), target.long())
    n_accepted = accepted.flatten(1).sum(dim=1).to(score.dtype)
    n_background = background.flatten(1).sum(dim=1).to(score.dtype)
    if form == "reference":
        weight = n_accepted / (n_background + 1e-6)
    else:
        weight = torch.where(n_background > 0, n_accepted / n_background.clamp(min=1), 1.0)
    return GatedLabels(labels, accepted, weight)


def weighted_cross_entropy(logits: Tensor, target: Tensor, *, image_weight: Tensor, ignore_id: int = VOID_ID) -> Tensor:
    """Cross-entropy of every pixel times the weight of its image (eq. 9), mean over all pixels.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) labels after the gate; void adds nothing but stays in the denominator, as released.
        image_weight: (B,) nu.
        ignore_id: void.

    Returns:
        Scalar.
    """
    per_pixel = cross_entropy(logits, target, ignore_id=ignore_id, reduction="none")
    return (image_weight.to(per_pixel.dtype).view(-1, 1, 1) * per_pixel).mean()
