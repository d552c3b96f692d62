"""Quantiles of Student's t without scipy, and the degrees of freedom that heavy-tailed contributions leave."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_NORMAL = NormalDist()
_SERIES_UP_TO = 30


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t with ``degrees`` >= 1 degrees of freedom.

    Up to 30 degrees the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4, inverted by bisection; above, the
    expansion 26.7.5 (within 0.01 % there for probabilities between 0.0001 and 0.9999).
    """
    if probability == 0.5:
        return 0.0
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    if degrees > _SERIES_UP_TO:
        return _expansion(_NORMAL.inv_cdf(probability), degrees)
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _share_inside(middle, degrees) < inside:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def effective_degrees(contributions: npt.NDArray[np.float64], *, at_most: int) -> int:
    """Return the degrees of freedom of a variance that is a sum of squared contributions of images.

    The sum of squares of heavy-tailed contributions varies more than that of normal ones: its relative variance is
    about ``sum f^4 / (sum f^2)^2 - 1 / n``, and matching that to a chi-square (Satterthwaite 1946) gives twice the
    inverse. A few large objects that make up most of the change leave few degrees of freedom.

    Args:
        contributions: (N,) influence of each image; zeros do not count.
        at_most: the number of images that show the class, less one.
    """
    f = contributions[contributions != 0]
    squares = float(np.sum(f**2))
    if f.size < 2 or squares <= 0:
        return max(1, at_most)
    excess = float(np.sum(f**4)) / squares**2 - 1 / f.size
    return max(1, min(at_most, math.floor(2 / excess))) if excess > 0 else max(1, at_most)


def _share_inside(theta: float, degrees: int) -> float:
    """Return P(|t| <= sqrt(degrees) tan theta)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, cosine if degrees > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return (2 / math.pi) * (theta + sine * total) if odd else sine * total


def _expansion(z: float, degrees: int) -> float:
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
