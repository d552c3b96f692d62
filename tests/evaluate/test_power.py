"""What the gate set can tell before training, against what the gate then does."""

from __future__ import annotations

import numpy as np
import pytest
from test_gate import CLASSES, OLD, simulate

from cilseg.evaluate.gate import GatePolicy, judge
from cilseg.evaluate.power import gate_power

POLICY = GatePolicy(resamples=400)
NAMES = CLASSES.names


def test_power_is_how_often_unchanged_classes_pass() -> None:
    """With the standard error of such comparisons, the power is the share of gate sets that keep the class."""
    gate_sets = [simulate(120, seed=s, noise=0.1) for s in range(150)]
    results = [judge(p, c, class_set=CLASSES, old=OLD, policy=POLICY) for p, c in gate_sets]
    kept = np.mean([[c.status == "kept" for c in r.of_role("old")] for r in results], axis=0)
    measured = np.mean([[c.standard_error for c in r.of_role("old")] for r in results], axis=0)
    errors = dict(zip(OLD, measured.tolist(), strict=True))
    power = gate_power(gate_sets[0][0], names=NAMES, old=OLD, policy=POLICY, earlier=errors)
    assert [p.measured for p in power] == [True] * 3
    np.testing.assert_allclose([p.power for p in power], kept, atol=0.12)


def test_images_needed_give_the_wanted_power() -> None:
    parent, candidate = simulate(40, noise=0.15)
    result = judge(parent, candidate, class_set=CLASSES, old=OLD, policy=POLICY)
    errors = {c.name: c.standard_error for c in result.of_role("old") if c.standard_error is not None}
    cat = gate_power(parent, names=NAMES, old=OLD, policy=POLICY, earlier=errors)[0]
    assert cat.images_needed is not None
    assert not cat.enough
    times = -(-cat.images_needed // cat.images)
    more = gate_power(
        np.tile(parent, (times, 1, 1)),
        names=NAMES,
        old=OLD,
        policy=POLICY,
        earlier={k: v / np.sqrt(times) for k, v in errors.items()},
    )[0]
    assert more.power >= 0.8
    assert more.enough
    assert f"about {cat.missing} more images of it" in cat.sentence()


def test_assumed_correlation_stands_in_for_a_comparison() -> None:
    parent, _ = simulate(300)
    sure, unsure = (gate_power(parent, names=NAMES, old=OLD, policy=POLICY, correlation=c)[0] for c in (0.99, 0.5))
    assert not sure.measured
    assert sure.standard_error is not None
    assert unsure.standard_error == pytest.approx(sure.standard_error * np.sqrt(50))
    assert sure.detectable is not None
    assert sure.power > unsure.power


def test_a_class_without_images_needs_the_least_number() -> None:
    parent, _ = simulate(60)
    parent[:, 1] = 0
    cat = gate_power(parent, names=NAMES, old=OLD, policy=POLICY)[0]
    assert (cat.images, cat.power, cat.images_needed) == (0, 0.0, POLICY.min_images_per_class)
    assert cat.sentence() == "cat: no annotated image shows it; annotate at least 20 of them."


def test_too_few_images_have_no_power() -> None:
    parent, _ = simulate(30)
    for p in gate_power(parent, names=NAMES, old=OLD, policy=POLICY, correlation=0.999):
        assert p.images < 20
        assert p.power == 0
        assert p.missing == 20 - p.images
