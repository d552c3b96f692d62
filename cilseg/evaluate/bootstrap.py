"""Paired bootstrap over images of per-class IoU differences between two models.

Both models are scored on the same images, so one resample of the images gives one IoU per class and model, and their
difference. IoU is a ratio of sums over images: a resample is a vector of image weights, and all resamples together are
one matrix product with the per-image intersection and union counts.

Resampling is stratified, so that every resample shows every class: an image belongs to the stratum of the rarest class
it shows. A stratum of n images is drawn n - 1 times and its weights are scaled by n / (n - 1), which keeps the variance
unbiased in small strata (Rao and Wu, "Resampling Inference with Complex Survey Data", JASA 1988).

A bound is the more cautious of two, since each fails where the other holds:

- BCa (Efron, "Better Bootstrap Confidence Intervals", JASA 1987, eq. 6.8), with the acceleration taken from the
  influence values of the ratio. It follows skew, but knows nothing of the number of images of a class varying from one
  gate set to the next.
- The estimate plus the standard error from the influence values over all images, not within strata (delta method),
  times a quantile. It knows that variation, but not the skew.

Both take the quantile from Student's t (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3)
with the degrees of freedom that heavy-tailed contributions leave (:func:`cilseg.evaluate.student.effective_degrees`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError
from cilseg.evaluate.student import effective_degrees, student_t_quantile

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_NORMAL = NormalDist()
_CHUNK_BYTES = 32 * 2**20
_REDRAWS = 50


@dataclass(frozen=True)
class PairedBootstrap:
    """Per-class IoU of two models on the same images, and resampled differences (candidate - parent).

    All IoU values are fractions. Column ``C`` (one past the last class) of ``delta``, ``replicates``,
    ``standard_error``, ``acceleration`` and ``degrees`` is the mean difference over the classes given as ``mean_of``.

    Attributes:
        parent_iou: (C,) IoU of the parent; NaN where a class has no truth pixels.
        candidate_iou: (C,) the same for the candidate.
        delta: (C + 1,) observed differences; NaN where a class has no truth pixels.
        replicates: (R, C + 1) float32 resampled differences; NaN where a class has no truth pixels.
        standard_error: (C + 1,) of ``delta``, by the delta method over all images.
        acceleration: (C + 1,) acceleration constant of BCa.
        degrees: (C + 1,) degrees of freedom of the standard error.
        images_with_class: (C + 1,) images whose truth shows the class (last: any class of ``mean_of``).
        n_images: images that were resampled.
    """

    parent_iou: Floats
    candidate_iou: Floats
    delta: Floats
    replicates: npt.NDArray[np.float32]
    standard_error: Floats
    acceleration: Floats
    degrees: Counts
    images_with_class: Counts
    n_images: int

    def lower(self, alpha: float) -> Floats:
        """Return (C + 1,) one-sided lower bounds: the true difference is below with probability ``alpha``."""
        return self._bound(alpha)

    def upper(self, alpha: float) -> Floats:
        """Return (C + 1,) one-sided upper bounds: the true difference is above with probability ``alpha``."""
        return self._bound(1.0 - alpha)

    def _bound(self, probability: float) -> Floats:
        cautious = min if probability < 0.5 else max
        bounds = np.full(self.delta.shape, np.nan)
        for column, estimate in enumerate(self.delta):
            values = self.replicates[:, column]
            values = values[~np.isnan(values)]
            if np.isnan(estimate) or values.size == 0 or self.images_with_class[column] < 2:
                continue
            quantile = student_t_quantile(probability, int(self.degrees[column]))
            level = _bca_level(
                quantile,
                share_below=_share_below(values, float(estimate)),
                acceleration=float(self.acceleration[column]),
            )
            by_error = float(estimate) + quantile * float(self.standard_error[column])
            bounds[column] = cautious(float(np.quantile(values, level)), by_error)
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
    before, union_before, truth_before = image_counts(parent)
    after, union_after, truth_after = image_counts(candidate)
    truth = np.maximum(truth_before, truth_after)
    present = truth > 0
    stacked = np.concatenate([before, union_before, after, union_after, truth], axis=1)
    shown = present.any(axis=0)

    def differences(totals: Floats) -> tuple[Floats, Floats, Floats]:
        i0, u0, i1, u1, _ = np.split(totals, 5, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            parent_iou = np.where(shown, i0 / u0, np.nan)
            candidate_iou = np.where(shown, i1 / u1, np.nan)
        delta = candidate_iou - parent_iou
        return parent_iou, candidate_iou, np.concatenate([delta, _row_mean(delta[:, columns])], axis=1)

    parent_iou, candidate_iou, delta = (a[0] for a in differences(stacked.sum(axis=0, keepdims=True)))
    strata = rarest_class(present)
    replicates = np.empty((resamples, n_classes + 1), dtype=np.float32)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_BYTES // (8 * max(n_images, 5 * n_classes)))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        weights = resample_weights(strata, resamples=stop - start, generator=generator)
        totals = weights @ stacked
        # A class whose every image also shows a rarer one has no stratum of its own: draw again where it is missing.
        for row in np.flatnonzero((totals[:, 4 * n_classes :][:, shown] == 0).any(axis=1)):
            again = np.random.default_rng([seed, start + int(row)])
            for _ in range(_REDRAWS):
                totals[row] = (resample_weights(strata, resamples=1, generator=again) @ stacked)[0]
                if (totals[row, 4 * n_classes :][shown] > 0).all():
                    break
        replicates[start:stop] = differences(totals)[2]

    influence = _influence(after, union_after) - _influence(before, union_before)
    influence[:, ~shown] = np.nan
    influence = np.concatenate([influence, _row_mean(influence[:, columns])], axis=1)
    squares = np.sum(influence**2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = np.where(squares > 0, np.sum(influence**3, axis=0) / (6.0 * squares**1.5), 0.0)
    any_present = present[:, columns].any(axis=1, keepdims=True)
    with_class = np.concatenate([present, any_present], axis=1).sum(axis=0).astype(np.int64)
    degrees = [
        effective_degrees(np.nan_to_num(influence[:, c]), at_most=max(1, int(n) - 1)) for c, n in enumerate(with_class)
    ]
    return PairedBootstrap(
        parent_iou=parent_iou,
        candidate_iou=candidate_iou,
        delta=delta,
        replicates=replicates,
        # Images without the class add little: its own images are what the variance is estimated from.
        standard_error=np.sqrt(squares * with_class / np.maximum(with_class - 1, 1)),
        acceleration=acceleration,
        degrees=np.array(degrees, dtype=np.int64),
        images_with_class=with_class,
        n_images=n_images,
    )


def image_counts(confusions: Counts) -> tuple[Floats, Floats, Floats]:
    """Return (N, C) intersections, unions and truth pixels as float64, which is exact below 2**53 pixels."""
    intersection = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    truth = confusions.sum(axis=2, dtype=np.int64).astype(np.float64)
    predicted = confusions.sum(axis=1, dtype=np.int64).astype(np.float64)
    return intersection, truth + predicted - intersection, truth


def rarest_class(present: npt.NDArray[np.bool_]) -> Counts:
    """Return (N,) the stratum of each image: the rarest class it shows, -1 for an image that shows none.

    Args:
        present: (N, C) which image shows which class.
    """
    rarity = np.where(present, present.sum(axis=0), np.iinfo(np.int64).max)
    strata: Counts = rarity.argmin(axis=1).astype(np.int64)
    strata[~present.any(axis=1)] = -1
    return strata


def resample_weights(strata: Counts, *, resamples: int, generator: np.random.Generator) -> Floats:
    """Return (resamples, N) weights: how often each image is drawn within its stratum, scaled as the module says.

    The only image of a stratum always has weight 1, so that its class is never missing.
    """
    order = np.argsort(strata, kind="stable")
    _, first, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    drawn = np.maximum(sizes, 2) - 1  # the only image of a stratum is drawn once
    start, size = np.repeat(first, drawn), np.repeat(sizes, drawn)
    picked = (generator.random((resamples, len(start))) * size).astype(np.int64) + start
    picked += np.arange(resamples, dtype=np.int64)[:, None] * len(strata)
    counts = np.bincount(picked.ravel(), minlength=resamples * len(strata)).reshape(resamples, len(strata))
    weights = np.empty(counts.shape)
    weights[:, order] = counts * np.repeat(sizes / drawn, sizes)
    return weights


def _influence(intersection: Floats, union: Floats) -> Floats:
    """Return (N, C) influence of each image on the dataset-level IoU; the sum over images is 0."""
    total = union.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((intersection - intersection.sum(axis=0) / total * union) / total, dtype=np.float64)


def _row_mean(values: Floats) -> Floats:
    """Return (N, 1) means over the columns that are not NaN; NaN where all are."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(valid, values, 0.0).sum(axis=1, keepdims=True) / valid.sum(axis=1, keepdims=True)
    return np.asarray(mean, dtype=np.float64)


def _share_below(values: npt.NDArray[np.float32], estimate: float) -> float:
    """Return the share of replicates below ``estimate``; equal ones count half. Kept off 0 and 1."""
    close = np.abs(values - np.float32(estimate)) <= 1e-6
    share = float(np.mean((values < estimate) & ~close) + 0.5 * np.mean(close))
    return min(max(share, 0.5 / values.size), 1 - 0.5 / values.size)


def _bca_level(quantile: float, *, share_below: float, acceleration: float) -> float:
    """Return the quantile of the replicates that bounds the difference where a symmetric bound has ``quantile``."""
    bias = _NORMAL.inv_cdf(share_below)
    shifted = bias + quantile
    denominator = 1.0 - acceleration * shifted
    if denominator <= 0:
        return float(shifted > 0)
    return _NORMAL.cdf(bias + shifted / denominator)
