"""Before training: can the gate set tell a kept class from one that lost the tolerance?

What the gate will see is the change of IoU, whose standard error depends on how differently parent and candidate answer
the same image. Before there is a candidate, it comes from one of two places:

- an earlier comparison on the same gate set (the parent with its own parent): its standard error, as it was found;
- an assumption: the influence of an image on the IoU of parent and candidate is correlated by ``correlation``, so that
  the change has the variance ``2 (1 - correlation)`` times that of the parent's IoU.

The power is the chance that a class which truly stays where it is passes, with the normal approximation; the images
needed follow from the standard error shrinking with the square root of their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cilseg.evaluate.bootstrap import image_counts
from cilseg.evaluate.policy import GatePolicy
from cilseg.evaluate.student import effective_degrees, student_t_quantile

Counts = npt.NDArray[np.int64]

CORRELATION = 0.9
"""Assumed where no earlier comparison is known; docs/gate.md says what real updates had."""
WANTED = 0.8
_NORMAL = NormalDist()
_MANY = 100_000


@dataclass(frozen=True)
class ClassPower:
    """What the gate set can say about one old class. Errors and changes are in points of IoU.

    Attributes:
        name: the class.
        images: annotated images that show it.
        iou: the parent's IoU; None where no image shows the class.
        standard_error: expected of the change.
        power: chance that the class passes if it stays where it is, 0 to 1.
        detectable: the smallest tolerance at which it would pass in 80 % of cases.
        images_needed: images of the class for a power of 80 %; None where more than 100,000 would be needed.
        measured: the standard error comes from an earlier comparison, not from the assumption.
    """

    name: str
    images: int
    iou: float | None
    standard_error: float | None
    power: float
    detectable: float | None
    images_needed: int | None
    measured: bool

    @property
    def enough(self) -> bool:
        """Whether a class that stays where it is passes in at least 80 % of cases."""
        return self.images_needed is not None and self.images >= self.images_needed

    @property
    def missing(self) -> int | None:
        """How many more images that show the class are needed; None where no number would do."""
        return None if self.images_needed is None else max(0, self.images_needed - self.images)

    def sentence(self) -> str:
        """Say it to a person."""
        if self.iou is None:
            return f"{self.name}: no annotated image shows it; annotate at least {self.images_needed} of them."
        basis = "as in an earlier update" if self.measured else "assumed"
        found = f"{self.images} images, standard error of the change {self.standard_error:.1f} points ({basis})"
        said = f"{self.name}: {found}; unchanged it passes in {self.power:.0%} of cases"
        if self.enough:
            return f"{said}."
        if self.missing is None:
            return f"{said}, and no number of images that can be annotated makes that {WANTED:.0%}."
        more = f"{self.missing} more {'image' if self.missing == 1 else 'images'} of it"
        return f"{said}; about {more} make that {WANTED:.0%} (or a tolerance of {self.detectable:.1f} points)."


def gate_power(
    parent: Counts,
    *,
    names: Sequence[str],
    old: Sequence[str],
    policy: GatePolicy,
    earlier: Mapping[str, float] | None = None,
    correlation: float = CORRELATION,
) -> tuple[ClassPower, ...]:
    """Return the power of a gate set for each old class.

    Args:
        parent: (N, C, C) per-image confusion matrices ``[truth, prediction]`` of the parent.
        names: the C class names, background first.
        old: the foreground classes to judge.
        policy: tolerance, error rate and least number of images.
        earlier: class -> standard error (points) of an earlier comparison on the same images.
        correlation: assumed for the other classes, below 1.
    """
    intersection, union, truth = image_counts(parent)
    alpha = policy.alpha / (len(old) if policy.correction == "bonferroni" else 1)
    results = []
    for name in old:
        index = list(names).index(name)
        images = int(np.count_nonzero(truth[:, index]))
        if images < 2:
            results.append(ClassPower(name, images, None, None, 0.0, None, policy.min_images_per_class, False))
            continue
        total = union[:, index].sum()
        iou = intersection[:, index].sum() / total
        influence = (intersection[:, index] - iou * union[:, index]) / total
        measured = (earlier or {}).get(name)
        assumed = math.sqrt(2 * (1 - correlation) * float(np.sum(influence**2)) * images / (images - 1))
        error = measured / 100 if measured is not None else assumed
        quantile = -student_t_quantile(alpha, effective_degrees(influence, at_most=images - 1))
        tolerance, wanted = policy.tolerance_points / 100, _NORMAL.inv_cdf(WANTED)
        enough = images >= policy.min_images_per_class
        power = _NORMAL.cdf(tolerance / error - quantile) if error > 0 else 1.0
        needed = math.ceil(images * ((quantile + wanted) * error / tolerance) ** 2)
        results.append(
            ClassPower(
                name=name,
                images=images,
                iou=100 * float(iou),
                standard_error=100 * error,
                power=power if enough else 0.0,
                detectable=100 * (quantile + wanted) * error,
                images_needed=max(needed, policy.min_images_per_class) if needed <= _MANY else None,
                measured=measured is not None,
            )
        )
    return tuple(results)
