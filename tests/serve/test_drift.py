"""Drift: distances checked against other ways to compute them, false alarms, and what has to be noticed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from cilseg.errors import InputError
from cilseg_serve.drift import (
    FEATURES,
    Observations,
    compare,
    gather,
    image_features,
    ks_chance,
    ks_distance,
    observe,
    psi,
)
from cilseg_serve.segmentation import Segmentation

NAMES = ("background", "cow", "sheep")


def sample(n: int, *, seed: int, weights: tuple[float, ...] = (5, 2, 1), shift: float = 0.0) -> Observations:
    """Images of which most show only some classes, as real ones do."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.array(weights) * 0.3, n)
    return Observations(NAMES, shares, rng.beta(8, 2, n) - shift, rng.normal(0.5 + shift, 0.1, (n, len(FEATURES))))


def test_psi_against_a_sum_by_hand() -> None:
    before, now = (0.7, 0.2, 0.1), (0.5, 0.2, 0.3)
    by_hand = (0.5 - 0.7) * np.log(0.5 / 0.7) + (0.3 - 0.1) * np.log(0.3 / 0.1)
    assert psi(before, now) == pytest.approx(by_hand)
    assert psi(before, before) == 0
    assert np.isfinite(psi((1.0, 0.0), (0.0, 1.0)))


@pytest.mark.parametrize("sizes", [(40, 60), (300, 31)])
def test_distances_against_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    before, now = rng.normal(0, 1, sizes[0]), np.round(rng.normal(0.4, 1, sizes[1]), 1)
    expected = scipy.stats.ks_2samp(before, now)
    assert ks_distance(before, now) == pytest.approx(expected.statistic)
    chance = ks_chance(*sizes, alpha=0.01)
    n_effective = sizes[0] * sizes[1] / sum(sizes)
    assert scipy.stats.kstwobign.sf(chance * np.sqrt(n_effective)) == pytest.approx(0.01, rel=0.02)


def test_false_alarms_are_rare() -> None:
    alarms = 0
    for trial in range(60):
        report = compare(sample(120, seed=2 * trial), sample(80, seed=2 * trial + 1), seed=trial)
        alarms += report.status == "drift"
    assert alarms <= 3


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (sample(200, seed=8, weights=(5, 0.2, 3)), "class_mix"),
        (dataclasses.replace(sample(200, seed=8), confidence=sample(200, seed=9).confidence - 0.2), "confidence"),
        (dataclasses.replace(sample(200, seed=8), features=sample(200, seed=9, shift=0.1).features), "brightness"),
    ],
)
def test_a_change_is_noticed_where_it_is(changed: Observations, name: str) -> None:
    report = compare(sample(200, seed=7), changed)
    assert report.status == "drift"
    assert name in [s.name for s in report.signals if s.drifted]
    assert ("class_mix" in [s.name for s in report.signals if s.drifted]) == (name == "class_mix")
    assert name in report.sentence()


def test_the_class_that_moved_most_is_named() -> None:
    signal = compare(sample(300, seed=7), sample(300, seed=8, weights=(5, 2, 12))).signals[0]
    assert signal.detail == "sheep"
    assert signal.now > 2 * signal.before


def test_what_was_not_recorded_is_left_out() -> None:
    blind = dataclasses.replace(
        sample(100, seed=1), confidence=np.full(100, np.nan), features=np.full((100, len(FEATURES)), np.nan)
    )
    assert [s.name for s in compare(blind, sample(100, seed=2)).signals] == ["class_mix"]


def test_too_few_images_decide_nothing() -> None:
    report = compare(sample(100, seed=1), sample(29, seed=2))
    assert (report.status, report.signals) == ("too_few", ())
    assert "30 on either side" in report.sentence()


def test_other_classes_are_refused() -> None:
    other = dataclasses.replace(sample(50, seed=1), class_names=("background", "cow", "goat"))
    with pytest.raises(InputError, match="sheep, the images background, cow, goat"):
        compare(sample(50, seed=1), other)
    with pytest.raises(InputError, match="their classes differ"):
        gather([other, sample(50, seed=1)])


def test_observations_survive_json() -> None:
    seen = dataclasses.replace(sample(5, seed=1), confidence=np.array([0.5, np.nan, 1.0, 0.0, 0.25]))
    back = Observations.from_json(json.loads(json.dumps(seen.to_json())))
    assert back.class_names == seen.class_names
    assert np.allclose(back.shares, seen.shares, atol=1e-6)
    assert np.array_equal(back.confidence, seen.confidence, equal_nan=True)
    assert np.allclose(back.features, seen.features, atol=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        Observations.from_json({**seen.to_json(), "classes": ["background"]})


def test_what_is_seen_of_an_image() -> None:
    mask = np.zeros((400, 600), np.uint8)
    mask[:, 300:] = 2
    result = Segmentation(mask, NAMES, np.zeros((3, 3), np.uint8), np.full(mask.shape, 0.75, np.float32))
    grey = np.full((400, 600, 3), 51, np.uint8)
    seen = observe(grey, result)
    assert seen.shares[0] == pytest.approx([0.5, 0, 0.5], abs=0.01)
    assert seen.confidence[0] == pytest.approx(0.75)
    assert seen.features[0] == pytest.approx([0.2, 0, 0, 0], abs=1e-5)


def test_features_tell_pictures_apart() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    red = np.zeros((200, 300, 3), np.uint8)
    red[..., 0] = 255
    brightness, contrast, saturation, sharpness = image_features(noise)
    assert 0.4 < brightness < 0.6
    assert contrast > 0.1
    assert sharpness > 0.1
    assert saturation < 0.8
    assert image_features(red) == pytest.approx((0.299, 0, 1, 0), abs=1e-5)
    assert image_features(np.full((1, 1, 3), 255, np.uint8)) == pytest.approx((1, 0, 0, 0), abs=1e-5)
