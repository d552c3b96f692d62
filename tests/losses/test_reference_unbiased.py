"""MiB's losses against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.errors import InputError
from cilseg.losses.distillation import kd
from cilseg.losses.pixel import cross_entropy
from cilseg.losses.unbiased import unbiased_ce, unbiased_kd
from cilseg.models.initialisation import background_split_init


# WILSON's code takes torch's mean, over the pixels that count; MiB's over all pixels (pixel_mib_total below).
@pytest.mark.parametrize(("key", "reduction"), [("mean", "valid_mean"), ("sum", "sum"), ("none", "none")])
def test_unbiased_ce(tensors, agrees, value_and_gradient, key, reduction):
    a = tensors("unbiased_ce")
    value, gradient = value_and_gradient(
        lambda z: unbiased_ce(z, a["target"], n_old=int(a["old_cl"]), reduction=reduction), a["logits"]
    )
    agrees(value, a[f"loss_{key}"])
    agrees(gradient, a[f"grad_{key}"])


@pytest.mark.parametrize("alpha", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "function"), [("unbiased_kd", unbiased_kd), ("kd", kd)])
def test_distillation(tensors, agrees, value_and_gradient, name, function, reduction, alpha):
    a = tensors(name)
    value, gradient = value_and_gradient(
        lambda z: function(z, a["old_logits"], alpha=float(alpha), reduction=reduction), a["logits"]
    )
    agrees(value, a[f"loss_a{alpha}_{reduction}"])
    agrees(gradient, a[f"grad_a{alpha}_{reduction}"])


@pytest.mark.parametrize(("name", "function"), [("unbiased_kd", unbiased_kd), ("kd", kd)])
def test_masked_distillation(tensors, agrees, value_and_gradient, name, function):
    a = tensors(name)
    value, gradient = value_and_gradient(lambda z: function(z, a["old_logits"], mask=a["mask"]), a["logits"])
    agrees(value, a["loss_masked_mean"])
    agrees(gradient, a["grad_masked_mean"])


@pytest.mark.parametrize("case", ["n3", "n1"])
@pytest.mark.parametrize("weight", [10, 100])
def test_total_of_mib(tensors, agrees, value_and_gradient, case, weight):
    a = {key[3:]: value for key, value in tensors("pixel_mib_total").items() if key.startswith(case)}
    n_old = int(a["n_old"])
    value, gradient = value_and_gradient(
        lambda z: unbiased_ce(z, a["labels"], n_old=n_old) + weight * unbiased_kd(z, a["old_logits"]), a["logits"]
    )
    agrees(value, a[f"total_lambda{weight}"])
    agrees(gradient, a[f"grad_lambda{weight}"])
    agrees(unbiased_ce(a["logits"], a["labels"], n_old=n_old), a["loss_uce"])
    agrees(unbiased_kd(a["logits"], a["old_logits"]), a["loss_ukd"])
    agrees(unbiased_ce(a["logits"], a["labels"], n_old=n_old, reduction="none"), a["uce_map"])
    valid = unbiased_ce(a["logits"], a["labels"], n_old=n_old, reduction="valid_mean")
    agrees(valid, a["loss_uce_valid_mean_own"])


@pytest.mark.parametrize("case", ["s1", "s2"])
def test_classifier_init_keeps_the_old_softmax(tensors, agrees, case):
    a = {key[3:]: value for key, value in tensors("pixel_mib_init_identity").items() if key.startswith(case)}
    n_new = int(a["classes"][-1])
    n_old = len(a["old_bias"])
    weight, bias, old_bias = background_split_init(a["old_weight"], a["old_bias"], n_new=n_new)
    loose = 1e-6  # the published code takes the logarithm in float32
    after = (torch.cat([a["old_weight"], weight]), torch.cat([old_bias, bias]))
    agrees(after[0], a["weight_after"], tolerance=loose)
    agrees(after[1], a["bias_after"], tolerance=loose)
    scores = torch.einsum("bdhw,cd->bchw", a["features"], after[0]) + after[1].view(1, -1, 1, 1)
    agrees(scores, a["logits_after"], tolerance=loose)
    softmax = scores.softmax(dim=1)
    agrees(softmax, a["softmax_after"], tolerance=loose)
    old = torch.einsum("bdhw,cd->bchw", a["features"], a["old_weight"]) + a["old_bias"].view(1, -1, 1, 1)
    agrees(old, a["old_logits"])
    agrees(old.softmax(dim=1), a["old_softmax"])
    agrees(softmax[:, 1:n_old], a["old_softmax"][:, 1:])
    agrees(softmax[:, :1] + softmax[:, n_old:].sum(dim=1, keepdim=True), a["old_softmax"][:, :1])
    background = torch.zeros(scores.shape[0], *scores.shape[2:], dtype=torch.long)
    agrees(unbiased_ce(scores, background, n_old=n_old), a["uce_of_background"], tolerance=loose)
    agrees(unbiased_kd(scores, old), a["ukd_at_init"], tolerance=loose)
    agrees(unbiased_kd(scores, old), a["entropy_of_teacher_over_Co"], tolerance=loose)


def test_a_step_without_new_classes_is_plain_distillation(tensors, agrees):
    a = tensors("unbiased_kd")
    same = a["logits"][:, : a["old_logits"].shape[1]]
    agrees(unbiased_kd(same, a["old_logits"]), kd(same, a["old_logits"]))


def test_one_old_channel_is_plain_cross_entropy(tensors, agrees):
    a = tensors("unbiased_ce")
    agrees(unbiased_ce(a["logits"], a["target"], n_old=1), cross_entropy(a["logits"], a["target"]))


def test_void_images_have_no_loss(tensors):
    a = tensors("unbiased_ce")
    void = torch.full_like(a["target"], 255)
    assert unbiased_ce(a["logits"], void, n_old=2, reduction="valid_mean") == 0


@pytest.mark.parametrize("function", [unbiased_kd, kd])
def test_swapped_models_are_refused(tensors, function):
    a = tensors("kd")
    with pytest.raises(InputError, match="swap the arguments"):
        function(a["old_logits"], a["logits"])


def test_impossible_numbers_of_old_channels_are_refused(tensors):
    a = tensors("unbiased_ce")
    with pytest.raises(InputError, match="n_old"):
        unbiased_ce(a["logits"], a["target"], n_old=8)
