"""Image-level average precision of a class, with its interval: what tags can say where nobody drew masks.

An image is ranked by the highest soft-max probability of the class anywhere in it; tags say whether the class is there.
Ties share the precision at their end, so that a model that answers the same everywhere scores the share of positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cilseg.evaluate.policy import GatePolicy

_NORMAL = NormalDist()

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of one class in points, with its one-sided bounds, from tags of images."""

    name: str
    value: float
    lower: float
    upper: float
    present: int
    absent: int
    seen_in_training: bool = False
    """The tagged images were trained on: the value flatters the model and decides nothing."""

    def clears(self, floor_points: float, policy: GatePolicy) -> bool:
        """Whether enough images that training has not seen put the lower bound at the floor or above."""
        enough = self.present >= policy.min_images_per_class
        return enough and not self.seen_in_training and self.lower >= floor_points


def average_precision(scores: Floats, present: Bools) -> float:
    """Return the mean precision at the ranks of the positives (ties: precision at the end of the tie), 0 to 1.

    Args:
        scores: (N,) higher is more likely present.
        present: (N,) what the tags say.

    Returns:
        NaN without a positive.
    """
    return float(_weighted(scores, present, np.ones((1, len(scores))))[0])


def average_precision_interval(
    name: str,
    scores: Floats,
    present: Bools,
    *,
    alpha: float,
    resamples: int = 2000,
    seed: int = 0,
    seen_in_training: bool = False,
) -> AveragePrecision | None:
    """Return the average precision with one-sided bounds at ``alpha`` from a bootstrap within present and absent.

    The bounds are bias-corrected percentiles (Efron, "Better Bootstrap Confidence Intervals", JASA 1987, eq. 2.7):
    images drawn twice rank next to themselves, so that resamples score higher than the images they come from.

    Returns:
        None where one of the two is missing.
    """
    n_present, n_absent = int(present.sum()), int((~present).sum())
    if not n_present or not n_absent:
        return None
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(scores)))
    for group in (np.flatnonzero(present), np.flatnonzero(~present)):
        weights[:, group] = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
    drawn = _weighted(scores, present, weights)
    value = average_precision(scores, present)
    below = float(np.mean(drawn < value) + 0.5 * np.mean(drawn == value))
    shift = 2 * _NORMAL.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    low, high = (_NORMAL.cdf(shift + _NORMAL.inv_cdf(p)) for p in (alpha, 1 - alpha))
    return AveragePrecision(
        name=name,
        value=100 * value,
        lower=100 * min(value, float(np.quantile(drawn, low))),
        upper=100 * max(value, float(np.quantile(drawn, high))),
        present=n_present,
        absent=n_absent,
        seen_in_training=seen_in_training,
    )


def _weighted(scores: Floats, present: Bools, weights: Floats) -> Floats:
    """Return (R,) average precisions of images counted ``weights`` (R, N) times."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive, counted = scores[order], present[order].astype(np.float64), weights[:, order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equal scores
    hits = np.cumsum(counted * positive, axis=1)[:, last]
    shown = np.cumsum(counted, axis=1)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(shown > 0, hits / shown, 0.0)
        gained = np.diff(hits, axis=1, prepend=0.0)
        return np.asarray((precision * gained).sum(axis=1) / hits[:, -1], dtype=np.float64)
