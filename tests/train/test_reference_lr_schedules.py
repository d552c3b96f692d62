"""Learning-rate schedules against the published implementation's arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cilseg.errors import InputError
from cilseg.train.schedules import lr_factor


def stored_cases(arrays):
    """(key, schedule, hold) of every stored table; lengths and holds are in the names."""
    for key in arrays:
        if match := re.fullmatch(r"(poly|warmup)_max(\d+)(?:_start(\d+))?", key):
            yield key, match[1], int(match[2]), int(match[3] or 0)


def test_stored_rates(reference):
    arrays = reference("lr_schedules")
    schedules = set()
    for key, schedule, total, hold in stored_cases(arrays):
        schedules.add(schedule)
        factors = [
            lr_factor(t, total_iterations=total, schedule=schedule, hold_iterations=hold)
            for t in range(len(arrays[key]))
        ]
        np.testing.assert_allclose(np.outer(factors, arrays["base"]), arrays[key], rtol=1e-9, atol=1e-12)
    assert schedules == {"poly", "warmup"}


def test_rates_of_the_tag_baselines(reference):
    """The optimiser of SEAM and EPS. Its class hands the weight decay to SGD's positional momentum argument, so that it
    trains with a momentum of 5e-4; that is not taken over. Beyond its last step it holds the last rate, ours is 0."""
    arrays = reference("poly_optimizer")
    total = int(arrays["max_step"])
    factors = [lr_factor(t, total_iterations=total) for t in range(total)]
    np.testing.assert_allclose(np.outer(factors, arrays["base_lr"]), arrays["lr_used"][:total], rtol=1e-9)


def test_the_end_and_beyond():
    assert lr_factor(10, total_iterations=10) == 0
    assert lr_factor(11, total_iterations=10, schedule="warmup", hold_iterations=50) == 0
    assert lr_factor(9, total_iterations=10, schedule="warmup", hold_iterations=50) == 1
    assert lr_factor(11, total_iterations=10, schedule="constant") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"iteration": 0, "total_iterations": 9, "schedule": "cosine"}, "Unknown learning-rate schedule 'cosine'"),
        ({"iteration": -1, "total_iterations": 9}, "got -1, 0 and 9"),
        ({"iteration": 0, "total_iterations": 0}, "got 0, 0 and 0"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(InputError, match=text):
        lr_factor(**arguments)
