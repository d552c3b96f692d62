"""Scores and their conventions against the published metrics' arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cilseg.classes import ClassSet
from cilseg.errors import InputError
from cilseg.evaluate.scoring import RELEASED_EPSILON, Scores, few_shot_scores, grouped, recall_rule

TOLERANCE = 1e-9
MATRICES = ("full", "absent", "never")


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def tasks(arrays, matrix):
    """(name, old ids, new ids) of every task stored for a matrix; the name ends in the number of new classes."""
    foreground = len(arrays[f"{matrix}_confusion"]) - 1
    names = sorted({m[1] for key in arrays if (m := re.fullmatch(rf"{matrix}_(\d+_\d+)_A", key))})
    for name in names:
        n_old, n_new = (int(part) for part in name.split("_"))
        assert n_old + n_new == foreground
        yield name, range(1, n_old + 1), range(n_old + 1, foreground + 1)


def test_stream_metrics(reference):
    arrays = reference("stream_metrics")
    scores = Scores(arrays["confusion"].astype(np.int64), epsilon=RELEASED_EPSILON)
    close(scores.overall_accuracy, arrays["overall_acc"])
    close(scores.mean_accuracy, arrays["mean_acc"])
    close(scores.mean_precision, arrays["mean_prec"])
    close(scores.mean_iou, arrays["mean_iou"])
    valid = arrays["class_iou_valid"]
    close(scores.class_iou, np.where(valid, arrays["class_iou"], np.nan))
    close(scores.class_accuracy, np.where(valid, arrays["class_acc"], np.nan))
    close(scores.class_precision[valid], arrays["class_prec"][valid])


@pytest.mark.parametrize("matrix", MATRICES)
def test_class_scores(reference, matrix):
    arrays = reference("pixel_miou_conventions")
    scores = Scores(arrays[f"{matrix}_confusion"], epsilon=RELEASED_EPSILON)
    stored = arrays[f"{matrix}_class_iou"]
    close(scores.class_iou, np.where(arrays[f"{matrix}_confusion"].sum(axis=1) > 0, stored, np.nan))
    close(scores.mean_iou, arrays[f"{matrix}_miou_stream"])
    close(scores.overall_accuracy, arrays[f"{matrix}_overall_acc"])
    close(scores.mean_accuracy, arrays[f"{matrix}_mean_acc"])


@pytest.mark.parametrize("matrix", MATRICES)
def test_conventions(reference, matrix):
    arrays = reference("pixel_miou_conventions")
    confusion = arrays[f"{matrix}_confusion"]
    scores = Scores(confusion, epsilon=RELEASED_EPSILON)
    seen = 0
    for task, old, new in tasks(arrays, matrix):
        seen += 1
        conventions = scores.grouped(old=old, new=new)
        for convention in "ABC":
            triple = [conventions[convention][group] for group in ("old", "new", "all")]
            close(triple, arrays[f"{matrix}_{task}_{convention}"])
        counted = recall_rule(confusion, old=old, new=new)
        close([counted[g] for g in ("old", "new", "all")], arrays[f"{matrix}_{task}_C_recall_rule"])
        few_shot = few_shot_scores(scores.class_iou, base=old, novel=new)
        close(list(few_shot.values()), arrays[f"{matrix}_{task}_pifs_base_novel_hm"])
    assert seen


def test_reported_scores_follow_the_class_set():
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 10, 0]])
    base = ClassSet.base(["cat"])
    grown = base.extend(["cow"], step=1)
    background, cat, cow = 8 / 11, 9 / 22, 0.0
    scores = Scores(confusion)
    close(list(scores.reported(grown).values()), [cat, cow, np.mean([background, cat, cow])])
    close(list(scores.reported(grown, since_step=2).values()), [np.mean([cat, cow]), np.nan, np.mean(scores.class_iou)])
    # The classes of a base model are old ones.
    report = Scores(confusion[:2, :2]).reported(base)
    assert report["old"] == pytest.approx(9 / 12)
    assert np.isnan(report["new"])
    with pytest.raises(InputError, match="has 3 classes, the class set 2"):
        scores.reported(base)


def test_a_perfect_prediction_scores_exactly_one():
    scores = Scores(np.diag([3, 4, 0]))
    np.testing.assert_array_equal(scores.class_iou, [1.0, 1.0, np.nan])
    assert scores.mean_iou == scores.mean_accuracy == scores.overall_accuracy == 1.0


def test_nothing_to_score():
    scores = Scores(np.zeros((2, 2), dtype=np.int64))
    assert np.isnan([scores.mean_iou, scores.mean_accuracy, scores.overall_accuracy]).all()


@pytest.mark.parametrize("confusion", [np.zeros((2, 3)), np.zeros((4, 2, 2)), np.zeros((0, 0)), -np.eye(2)])
def test_what_is_no_confusion_matrix(confusion):
    with pytest.raises(InputError, match="confusion matrix"):
        Scores(confusion)


def test_group_faults_are_reported_together():
    with pytest.raises(InputError) as caught:
        grouped(np.ones(4), old=[0, 1], new=[1, 9])
    text = str(caught.value)
    assert "old: ids [0]" in text
    assert "new: ids [9]" in text
    assert "ids [1] are both old and new" in text
