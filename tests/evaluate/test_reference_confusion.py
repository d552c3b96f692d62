"""Confusion matrices against the published metric's arrays, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from cilseg.errors import InputError
from cilseg.evaluate.confusion import confusion_matrix, image_confusions


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_confusion(reference, dtype):
    arrays = reference("stream_metrics")
    truth, prediction = arrays["gt"].astype(dtype), arrays["pred"].astype(dtype)
    matrix = confusion_matrix(truth, prediction, n_classes=int(arrays["n_classes"]))
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, arrays["confusion"])


def test_stack_of_images_sums_to_the_whole_set(reference):
    arrays = reference("stream_metrics")
    pairs = zip(arrays["gt"], arrays["pred"], strict=True)
    stack = image_confusions(pairs, n_classes=int(arrays["n_classes"]))
    assert len(stack) == int(arrays["total_samples"])
    np.testing.assert_array_equal(stack.sum(axis=0), arrays["confusion"])
    assert image_confusions([], n_classes=3).shape == (0, 3, 3)


def test_prediction_does_not_count_where_the_truth_is_void():
    truth = np.array([[0, 255], [255, 1]], dtype=np.uint8)
    prediction = np.array([[0, 255], [200, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, n_classes=2), [[1, 0], [1, 0]])


@pytest.mark.parametrize(
    ("truth", "prediction", "text"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "truth has size 2x3, the prediction 3x2"),
        (np.array([0, 7]), np.array([0, 1]), r"truth holds ids 7; known are 0 \.\. 2"),
        (np.array([0, 1]), np.array([0, 255]), r"prediction holds ids 255; .*void in the truth only"),
        (np.array([0, 1]), np.array([-1, 0]), "prediction holds ids -1"),
        (np.array([0, 300]), np.array([0, 0]), "truth holds ids 300"),
        (np.array([0.0, 1.0]), np.array([0, 0]), "float64 values, expected integer"),
    ],
)
def test_refusals(truth, prediction, text):
    with pytest.raises(InputError, match=text):
        confusion_matrix(truth, prediction, n_classes=3)


def test_all_faults_are_reported_together():
    with pytest.raises(InputError) as caught:
        confusion_matrix(np.array([0, 9]), np.array([8, 0]), n_classes=3)
    assert "truth holds ids 9" in str(caught.value)
    assert "prediction holds ids 8" in str(caught.value)


def test_the_wrong_image_is_named():
    good = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match=r"Pair 1: (?s:.*)truth holds ids 5"):
        image_confusions([(good, good), (good + 5, good)], n_classes=2)
