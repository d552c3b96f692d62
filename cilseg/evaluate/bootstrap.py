"""Paired bootstrap over images of per-class IoU differences between two models.

Both models are scored on the same images, so one resample of the images gives one IoU per class and model, and their
difference. IoU is a ratio of sums over images: a resample is a vector of image weights, and all resamples together are
one matrix product with the per-image intersection and union counts.

Intervals are BCa (Efron, "Better Bootstrap Confidence Intervals", JASA 1987, eq. 6.8), with the acceleration taken from
the empirical influence values of the ratio, and with the normal quantile replaced by the Student-t quantile for few
images (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_NORMAL = NormalDist()
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class PairedBootstrap:
    """Per-class IoU of two models on the same images, and resampled differences (candidate - parent).

    All IoU values are fractions. Column ``C`` (one past the last class) of ``delta``, ``replicates``,
    ``standard_error`` and ``acceleration`` is the mean difference over the classes given as ``mean_of``.

    Attributes:
        parent_iou: (C,) IoU of the parent; NaN where a class has no truth pixels.
        candidate_iou: (C,) the same for the candidate.
        delta: (C + 1,) observed differences; NaN where a class has no truth pixels.
        replicates: (R, C + 1) float32 resampled differences; NaN where a resample has no truth pixels of the class.
        standard_error: (C + 1,) standard deviation of the replicates.
        acceleration: (C + 1,) acceleration constant of BCa.
        images_with_class: (C + 1,) images whose truth shows the class (last: any class of ``mean_of``).
        n_images: images that were resampled.
    """

    parent_iou: Floats
    candidate_iou: Floats
    delta: Floats
    replicates: npt.NDArray[np.float32]
    standard_error: Floats
    acceleration: Floats
    images_with_class: Counts
    n_images: int

    def lower(self, alpha: float) -> Floats:
        """Return (C + 1,) one-sided lower bounds: the true difference is below with probability ``alpha``."""
        return self._bound(alpha)

    def upper(self, alpha: float) -> Floats:
        """Return (C + 1,) one-sided upper bounds: the true difference is above with probability ``alpha``."""
        return self._bound(1.0 - alpha)

    def _bound(self, probability: float) -> Floats:
        bounds = np.full(self.delta.shape, np.nan)
        for column, estimate in enumerate(self.delta):
            values = self.replicates[:, column]
            values = values[~np.isnan(values)]
            n_images = int(self.images_with_class[column])
            if np.isnan(estimate) or values.size == 0 or n_images < 2:
                continue
            level = _bca_level(
                probability,
                share_below=_share_below(values, float(estimate)),
                acceleration=float(self.acceleration[column]),
                n_images=n_images,
            )
            bounds[column] = np.quantile(values, level)
        return bounds


def paired_bootstrap(
    parent: Counts, candidate: Counts, *, mean_of: Sequence[int], resamples: int = 10_000, seed: int = 0
) -> PairedBootstrap:
    """Resample images and return per-class IoU differences of two models.

    Args:
        parent: (N, C, C) per-image confusion matrices ``[truth, prediction]`` of the parent.
        candidate: (N, C, C) the same images, in the same order, for the candidate.
        mean_of: class ids whose mean difference goes into the extra column.
        resamples: number of resamples R.
        seed: seed of the resampling; equal seeds give equal results.

    Raises:
        InputError: the two stacks differ in shape, hold no image, or ``resamples`` is below 100.
    """
    if parent.shape != candidate.shape or parent.ndim != 3 or parent.shape[1] != parent.shape[2]:
        raise InputError(
            f"The gate compares two stacks of confusion matrices (N, C, C) of the same images; got {parent.shape} for "
            f"the parent and {candidate.shape} for the candidate. Score both on one gate set and in one class set."
        )
    if parent.shape[0] == 0:
        raise InputError("The gate set holds no image. Give a split with annotated images.")
    if resamples < 100:
        raise InputError(f"A bootstrap needs at least 100 resamples, got {resamples}. 10000 is the usual number.")

    n_images, n_classes, _ = parent.shape
    columns = list(mean_of)
    before, union_before, truth_before = _counts(parent)
    after, union_after, truth_after = _counts(candidate)
    truth = np.maximum(truth_before, truth_after)
    stacked = np.concatenate([before, union_before, after, union_after, truth], axis=1)

    def differences(totals: Floats) -> tuple[Floats, Floats, Floats]:
        i0, u0, i1, u1, t = np.split(totals, 5, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            parent_iou = np.where(t > 0, i0 / u0, np.nan)
            candidate_iou = np.where(t > 0, i1 / u1, np.nan)
        delta = candidate_iou - parent_iou
        return parent_iou, candidate_iou, np.concatenate([delta, _row_mean(delta[:, columns])], axis=1)

    parent_iou, candidate_iou, delta = (a[0] for a in differences(stacked.sum(axis=0, keepdims=True)))
    replicates = np.empty((resamples, n_classes + 1), dtype=np.float32)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_BYTES // (8 * max(n_images, 5 * n_classes)))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        weights = resample_weights(n_images, resamples=stop - start, generator=generator)
        replicates[start:stop] = differences(weights @ stacked)[2]

    with np.errstate(invalid="ignore", divide="ignore"):
        influence = (after - candidate_iou * union_after) / union_after.sum(axis=0)
        influence -= (before - parent_iou * union_before) / union_before.sum(axis=0)
        influence = np.concatenate([influence, _row_mean(influence[:, columns])], axis=1)
        squares = np.sum(influence**2, axis=0)
        acceleration = np.where(squares > 0, np.sum(influence**3, axis=0) / (6.0 * squares**1.5), 0.0)
    present = truth > 0
    any_present = present[:, columns].any(axis=1, keepdims=True)
    return PairedBootstrap(
        parent_iou=parent_iou,
        candidate_iou=candidate_iou,
        delta=delta,
        replicates=replicates,
        standard_error=_column_std(replicates),
        acceleration=acceleration,
        images_with_class=np.concatenate([present, any_present], axis=1).sum(axis=0).astype(np.int64),
        n_images=n_images,
    )


def resample_weights(n_images: int, *, resamples: int, generator: np.random.Generator) -> Floats:
    """Return (resamples, n_images) multinomial weights: how often each image is drawn with replacement."""
    drawn = generator.integers(0, n_images, size=(resamples, n_images), dtype=np.int64)
    drawn += np.arange(resamples, dtype=np.int64)[:, None] * n_images
    counts = np.bincount(drawn.ravel(), minlength=resamples * n_images)
    return counts.reshape(resamples, n_images).astype(np.float64)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t with ``degrees`` >= 1 degrees of freedom.

    Exact for one and two degrees, else the expansion of Abramowitz and Stegun 26.7.5 (within 1 % from 4 degrees on for
    probabilities between 0.005 and 0.995).
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


def _counts(confusions: Counts) -> tuple[Floats, Floats, Floats]:
    """Return (N, C) intersections, unions and truth pixels as float64, which is exact below 2**53 pixels."""
    intersection = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    truth = confusions.sum(axis=2, dtype=np.int64).astype(np.float64)
    predicted = confusions.sum(axis=1, dtype=np.int64).astype(np.float64)
    return intersection, truth + predicted - intersection, truth


def _row_mean(values: Floats) -> Floats:
    """Return (N, 1) means over the columns that are not NaN; NaN where all are."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(valid, values, 0.0).sum(axis=1, keepdims=True) / valid.sum(axis=1, keepdims=True)
    return np.asarray(mean, dtype=np.float64)


def _column_std(values: npt.NDArray[np.float32]) -> Floats:
    """Return the standard deviation of each column, NaN left out; NaN below two values."""
    result = np.full(values.shape[1], np.nan)
    for column in range(values.shape[1]):
        known = values[:, column][~np.isnan(values[:, column])].astype(np.float64)
        if known.size > 1:
            result[column] = known.std(ddof=1)
    return result


def _share_below(values: npt.NDArray[np.float32], estimate: float) -> float:
    """Return the share of replicates below ``estimate``; equal ones count half. Kept off 0 and 1."""
    close = np.abs(values - np.float32(estimate)) <= 1e-6
    share = float(np.mean((values < estimate) & ~close) + 0.5 * np.mean(close))
    return min(max(share, 0.5 / values.size), 1 - 0.5 / values.size)


def _bca_level(probability: float, *, share_below: float, acceleration: float, n_images: int) -> float:
    """Return the quantile of the replicates that bounds the difference at ``probability``."""
    bias = _NORMAL.inv_cdf(share_below)
    wanted = student_t_quantile(probability, n_images - 1) * math.sqrt(n_images / (n_images - 1))
    shifted = bias + wanted
    denominator = 1.0 - acceleration * shifted
    if denominator <= 0:
        return float(shifted > 0)
    return _NORMAL.cdf(bias + shifted / denominator)
