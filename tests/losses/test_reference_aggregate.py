"""Image scores and tag losses against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.aggregate import attention_pool, focal_penalty, global_average, ngwp, ngwp_focal, tag_loss

AGGREGATIONS = {"ngwp": "ngwp", "att": "attention", "gap": "gap"}


def test_scores(tensors, agrees):
    arrays = tensors("wilson_ngwp_focal")
    logits = arrays["logits"]
    agrees(ngwp(logits), arrays["y_ngwp"])
    agrees(ngwp_focal(logits), arrays["y_ngwp_focal"])
    agrees(focal_penalty(logits), arrays["y_ngwp_focal"] - arrays["y_ngwp"])
    agrees(attention_pool(logits), arrays["y_attention"])
    agrees(global_average(logits), arrays["y_gap"])


@pytest.mark.parametrize(("name", "function"), [("ngwp", ngwp), ("ngwp_focal", ngwp_focal)])
def test_score_gradients(tensors, agrees, value_and_gradient, name, function):
    arrays = tensors("wilson_ngwp_focal")
    _, gradient = value_and_gradient(lambda z: function(z) * arrays["cotangent"], arrays["logits"])
    agrees(gradient, arrays[f"grad_{name}"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_tag_loss_of_new_classes(tensors, agrees, value_and_gradient, mode, reduction):
    arrays = tensors("wilson_cls_loss")
    value, gradient = value_and_gradient(
        lambda z: tag_loss(z, arrays["labels_new"], aggregation=AGGREGATIONS[mode], reduction=reduction),
        arrays["logits"],
    )
    agrees(value, arrays[f"loss_{mode}_{reduction}"])
    agrees(gradient, arrays[f"grad_{mode}_{reduction}"])


def test_tag_loss_of_all_classes(tensors, agrees, value_and_gradient):
    arrays = tensors("wilson_cls_loss")
    value, gradient = value_and_gradient(lambda z: tag_loss(z, arrays["labels_all"]), arrays["logits"])
    agrees(value, arrays["loss_ngwp_mean_allclasses"])
    agrees(gradient, arrays["grad_ngwp_mean_allclasses"])


@pytest.mark.parametrize("unknown", [-1.0, float("nan")])
def test_unknown_tags_leave_the_mean(tensors, agrees, value_and_gradient, unknown):
    arrays = tensors("wilson_cls_loss")
    tags = arrays["labels_new"].clone()
    tags[0, 1:] = unknown
    entries = tag_loss(arrays["logits"], arrays["labels_new"], reduction="none")
    known = entries[tags >= 0]
    value, gradient = value_and_gradient(lambda z: tag_loss(z, tags), arrays["logits"])
    agrees(value, known.mean())
    assert torch.isfinite(gradient).all()
    tags[:] = unknown
    value, gradient = value_and_gradient(lambda z: tag_loss(z, tags), arrays["logits"])
    assert value == 0
    assert (gradient == 0).all()


def test_weight_makes_a_weighted_mean(tensors, agrees):
    arrays = tensors("wilson_cls_loss")
    tags = arrays["labels_new"]
    entries = tag_loss(arrays["logits"], tags, reduction="none")
    weight = torch.linspace(0.5, 2.0, tags.shape[1], dtype=entries.dtype)
    agrees(tag_loss(arrays["logits"], tags, weight=weight), (entries * weight).sum() / (weight.sum() * len(tags)))


def test_low_precision_is_widened(tensors):
    logits = tensors("wilson_ngwp_focal")["logits"].to(torch.bfloat16)
    scores = ngwp_focal(logits)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, ngwp_focal(logits.double()).float())
