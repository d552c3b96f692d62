"""Learning-rate schedules: the factor on every base rate at an iteration."""

from __future__ import annotations

import math
from typing import Literal

from cilseg.errors import InputError

Schedule = Literal["constant", "poly", "warmup"]


def lr_factor(
    iteration: int,
    *,
    total_iterations: int,
    schedule: Schedule = "poly",
    power: float = 0.9,
    hold_iterations: int = 0,
) -> float:
    """Return what the base learning rates are multiplied with at ``iteration``.

    "poly" is ``(1 - t / T) ^ power``. "warmup" is 1 for ``t < hold_iterations`` and then the SAME curve, counted
    from iteration 0: the rate jumps down at the end of the hold (WILSON's released code, where the localizer learns
    alone meanwhile). "constant" is 1.

    Args:
        iteration: t, from 0.
        total_iterations: T; from there on the factor is 0 (1 for "constant").
        schedule: which curve.
        power: exponent of the polynomial.
        hold_iterations: length of the hold of "warmup"; the other schedules take no notice.

    Raises:
        InputError: an unknown schedule, a negative iteration or hold, or ``total_iterations`` below 1.
    """
    if schedule not in ("constant", "poly", "warmup"):
        raise InputError(f"Unknown learning-rate schedule {schedule!r}; take one of: constant, poly, warmup.")
    if iteration < 0 or hold_iterations < 0 or total_iterations < 1:
        raise InputError(
            f"A schedule needs iteration >= 0, hold_iterations >= 0 and total_iterations >= 1, got {iteration}, "
            f"{hold_iterations} and {total_iterations}."
        )
    if schedule == "constant":
        return 1.0
    if schedule == "warmup" and iteration < min(hold_iterations, total_iterations):
        return 1.0
    return math.pow(max(0.0, 1.0 - iteration / total_iterations), power)
