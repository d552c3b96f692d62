"""Expected calibration error against hand-made answers."""

from __future__ import annotations

import numpy as np
import pytest

from cilseg.evaluate.calibration import Calibration, calibration_of


def test_error_is_the_gap_between_confidence_and_accuracy() -> None:
    truth = np.array([[1, 1, 1, 1, 255]], dtype=np.uint8)
    prediction = np.array([[1, 1, 1, 2, 1]], dtype=np.uint8)
    found = calibration_of(truth, prediction, np.full((1, 5), 0.95, dtype=np.float32))
    assert found.pixels.sum() == 4
    assert found.error == pytest.approx(0.95 - 0.75)
    assert found.overconfidence == pytest.approx(0.2)


def test_bins_keep_opposite_gaps_apart() -> None:
    truth = np.array([[1, 1, 2, 2]], dtype=np.uint8)
    prediction = np.array([[1, 1, 1, 1]], dtype=np.uint8)
    confidence = np.array([[0.5, 0.5, 1.0, 1.0]], dtype=np.float32)
    found = calibration_of(truth, prediction, confidence)
    assert found.error == pytest.approx((2 * 0.5 + 2 * 1.0) / 4)
    assert found.overconfidence == pytest.approx(0.25)


def test_images_add_up() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 8, 9)).astype(np.uint8)
    confidence = rng.random((8, 9)).astype(np.float32)
    whole = calibration_of(truth, prediction, confidence)
    parts = Calibration.empty()
    for rows in (slice(0, 3), slice(3, 8)):
        parts += calibration_of(truth[rows], prediction[rows], confidence[rows])
    assert parts.error == pytest.approx(whole.error)
    assert np.isnan(Calibration.empty().error)
