"""Average precision against scikit-learn, its interval, and when it decides anything."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cilseg.evaluate.average_precision import AveragePrecision, average_precision, average_precision_interval
from cilseg.evaluate.policy import GatePolicy


@pytest.mark.parametrize("decimals", [1, 6])
def test_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        present = rng.random(50) < 0.3
        scores = np.round(rng.normal(size=50) + present, decimals)
        assert average_precision(scores, present) == pytest.approx(average_precision_score(present, scores))


def test_bounds_hold_the_value_and_shrink_with_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (60, 1000):
        present = np.arange(n) % 4 == 0
        found = average_precision_interval("cow", rng.normal(size=n) + 1.5 * present, present, alpha=0.05)
        assert found is not None
        assert found.lower < found.value < found.upper
        assert (found.present, found.absent) == (n // 4, n - n // 4)
        widths.append(found.upper - found.lower)
    assert widths[1] < widths[0] / 2


def test_lower_bound_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth = 100 * average_precision(
        rng.normal(size=200_000) + 1.5 * (np.arange(200_000) % 2), np.arange(200_000) % 2 > 0
    )
    above = 0
    for seed in range(200):
        present = np.arange(120) % 2 > 0
        scores = rng.normal(size=120) + 1.5 * present
        found = average_precision_interval("cow", scores, present, alpha=0.05, resamples=300, seed=seed)
        assert found is not None
        above += found.lower > truth
    assert above / 200 <= 0.1  # 5 % and three standard errors


def test_one_sided_tags_say_nothing() -> None:
    assert average_precision_interval("cow", np.ones(4), np.ones(4, dtype=bool), alpha=0.05) is None
    assert np.isnan(average_precision(np.ones(4), np.zeros(4, dtype=bool)))


def test_a_floor_is_cleared_by_unseen_images_only() -> None:
    policy = GatePolicy(min_images_per_class=20)
    good = AveragePrecision("cow", 80.0, 70.0, 90.0, present=20, absent=50)
    assert good.clears(70.0, policy)
    assert not good.clears(70.1, policy)
    seen = AveragePrecision("cow", 80.0, 70.0, 90.0, present=20, absent=50, seen_in_training=True)
    assert not seen.clears(50.0, policy)
    assert not AveragePrecision("cow", 80.0, 70.0, 90.0, present=19, absent=50).clears(50.0, policy)
