"""PLOP's pseudo-labels against the published implementation's arrays and the paper's formulas."""

from __future__ import annotations

import pytest
import torch

from cilseg.errors import InputError
from cilseg.losses.entropy_gate import (
    REFERENCE_FLOOR,
    ThresholdPass,
    entropy_score,
    gated_labels,
    reference_thresholds,
    weighted_cross_entropy,
)

CASES = pytest.mark.parametrize("name", ["pixel_plop_pseudo_toy", "pixel_plop_pseudo_big"])
FORMS = pytest.mark.parametrize("form", ["paper", "reference"])


def filled(a, form, **options):
    gate = ThresholdPass(int(a["n_old"] + a["n_new"]), form=form, **options)
    for logits, labels in zip(a["calib_old_logits"], a["calib_labels"], strict=True):
        gate.update(logits, labels)
    return gate


@CASES
@FORMS
def test_thresholds(tensors, agrees, name, form):
    a = tensors(name)
    gate = filled(a, form)
    tolerance = 1e-9 if form == "paper" else 1e-6  # the published code interpolates in float32
    agrees(gate.thresholds(), a[f"thr_{form}"], tolerance=tolerance)
    if form == "reference":
        torch.testing.assert_close(gate.histogram, a["hist"].long())


@CASES
@FORMS
def test_labels_weights_and_loss(tensors, agrees, value_and_gradient, name, form):
    a = tensors(name)
    n_classes = int(a["n_old"] + a["n_new"])
    got = gated_labels(
        a["train_old_logits"], a["train_labels"], thresholds=a[f"thr_{form}"], n_classes=n_classes, form=form
    )
    assert torch.equal(got.labels, a[f"labels_{form}"].long())
    assert torch.equal(got.accepted, a[f"accept_{form}"])
    agrees(got.image_weight, a[f"nu_{form}"])
    value, gradient = value_and_gradient(
        lambda z: weighted_cross_entropy(z, got.labels, image_weight=got.image_weight), a["train_new_logits"]
    )
    agrees(value, a[f"loss_{form}"], tolerance=1e-9 if form == "paper" else 1e-6)
    agrees(gradient, a[f"grad_new_logits_{form}"], tolerance=1e-7)


@CASES
def test_scores(tensors, agrees, name):
    a = tensors(name)
    n_classes = int(a["n_old"] + a["n_new"])
    score = entropy_score(a["train_old_logits"], n_classes=n_classes, form="reference")
    agrees(score, a["s_reference"])
    agrees(entropy_score(a["train_old_logits"]), a["u_normalised"], tolerance=1e-6)
    agrees(score.new_tensor(n_classes).log(), a["max_entropy"], tolerance=1e-6)


@pytest.mark.parametrize(("key", "floor"), [("0p001", 0.001), ("0p5", 0.5)])
def test_reference_interpolation(tensors, agrees, key, floor):
    a = tensors("pixel_plop_threshold_hist")
    got = reference_thresholds(a["hist"], floor=floor)
    agrees(got, a[f"thr_floor_{key}"], tolerance=1e-6)


def test_summing_counts_instead_of_bin_numbers_gives_the_median(tensors, agrees):
    """The published interpolation is right once its running sum is."""
    a = tensors("pixel_plop_threshold_hist")
    got = []
    for counts in a["hist"].tolist():
        half, running, value = sum(counts) / 2, 0, 0.0
        for index, count in enumerate(counts):
            if half and running <= half <= running + count:
                value = (index + (half - running) / count) / len(counts)
                break
            running += count
        got.append(value)
    wanted = a["thr_count_sum_own"]
    agrees(torch.tensor(got), wanted.nan_to_num(0.0), tolerance=1e-6)


def test_a_sample_of_the_scores_gives_nearly_the_same_medians(tensors):
    a = tensors("pixel_plop_pseudo_toy")
    full = filled(a, "paper").thresholds()
    sampled = filled(a, "paper", max_per_class=200).thresholds()
    assert (full - sampled).abs().max() < 0.1
    assert not torch.equal(full, sampled)


def test_classes_never_predicted_get_the_floor():
    assert (ThresholdPass(3).thresholds() == 0).all()
    assert (ThresholdPass(3, form="reference").thresholds() == REFERENCE_FLOOR).all()


def test_half_the_pixels_of_a_class_pass_the_paper_form(tensors):
    a = tensors("pixel_plop_pseudo_toy")
    logits, labels = a["calib_old_logits"].flatten(0, 1), a["calib_labels"].flatten(0, 1)
    got = gated_labels(logits, labels, thresholds=filled(a, "paper").thresholds())
    assert abs(got.accepted.sum() / (labels < int(a["n_old"])).sum() - 0.5) < 0.05


def test_refusals():
    with pytest.raises(InputError, match="old class beside background"):
        entropy_score(torch.zeros(1, 1, 2, 2))
    with pytest.raises(InputError, match="n_classes"):
        entropy_score(torch.zeros(1, 2, 2, 2), form="reference")
