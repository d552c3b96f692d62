"""WILSON's losses, one by one and as whole steps, against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.pamr import pamr
from cilseg.losses.pseudo_labels import mask_by_tags
from cilseg.losses.wilson import (
    balanced_mask_ce,
    encoder_distillation,
    image_weight,
    localizer_distillation,
    make_pseudo_labels,
    segmentation_loss,
    segmentation_target,
    wilson_losses,
)

STEPS = [f"wilson_step_{name}" for name in ("a05_min", "a05_bkg03", "a09_min", "rejected_image", "warmup")]
LOSS_KEYS = {"cls": "loss_cls_new", "loc": "loss_loc", "enc": "loss_enc", "seg": "loss_seg_out", "sss": "loss_sss"}
WARM_UP_EPOCHS = 5
# The published code weighs images in float32: its 1e-5 in the denominator is rounded.
SEG_TOLERANCE = 2e-7


def step_arguments(arrays):
    """Keyword arguments of wilson_losses, and the leaves whose gradients are stored."""
    mix = float(arrays["icarl_bkg"]) if "icarl_bkg" in arrays else -1.0
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    leaves = {
        "loc_raw": arrays["loc_raw"].clone().requires_grad_(),
        "seg_logits": arrays["seg_logits"].clone().requires_grad_(),
        "body": arrays.get("feat", nothing).clone().requires_grad_(),
    }
    arguments = {
        "loc_eval": arrays["loc_eval"],
        "old_logits": arrays["old_logits"],
        "old_body": arrays.get("feat_old", nothing),
        "tags": arrays["tags"],
        "n_old": int(arrays["n_old"]),
        "image": arrays["images_norm"],
        "alpha": float(arrays["alpha"]),
        "background_mix": None if mix < 0 else mix,
        "warm_up": "epoch" in arrays and int(arrays["epoch"]) < WARM_UP_EPOCHS,
    }
    return arguments, leaves


@pytest.mark.parametrize("name", STEPS)
def test_step_losses(tensors, agrees, name):
    arrays = tensors(name)
    arguments, leaves = step_arguments(arrays)
    losses = wilson_losses(**arguments, **leaves)
    assert set(losses) == set(LOSS_KEYS)
    checked = [ours for ours, key in LOSS_KEYS.items() if key in arrays]
    assert {"seg", "sss"} <= set(checked)
    for ours in checked:
        agrees(losses[ours], arrays[LOSS_KEYS[ours]], tolerance=SEG_TOLERANCE if ours == "seg" else None)
    if "loss_total" in arrays:
        agrees(sum(losses.values()), arrays["loss_total"], tolerance=SEG_TOLERANCE)


@pytest.mark.parametrize("name", STEPS)
def test_step_gradients(tensors, agrees, name):
    arrays = tensors(name)
    arguments, leaves = step_arguments(arrays)
    losses = wilson_losses(**arguments, **leaves)
    # Where the distillations are not stored, the stored gradient is that of the segmentation and mask losses.
    stored = losses.values() if "loss_total" in arrays else (losses["seg"], losses["sss"])
    sum(stored).backward()
    agrees(leaves["loc_raw"].grad, arrays["grad_loc_raw"])
    agrees(leaves["seg_logits"].grad, arrays["grad_seg_logits"], tolerance=SEG_TOLERANCE)
    if "grad_feat" in arrays:
        agrees(leaves["body"].grad, arrays["grad_feat"])


@pytest.mark.parametrize("name", [n for n in STEPS if "warmup" not in n])
def test_step_pseudo_labels(tensors, agrees, name):
    arrays = tensors(name)
    arguments, _ = step_arguments(arrays)
    options = {k: arguments[k] for k in ("tags", "n_old", "image", "alpha", "background_mix")}
    labels = make_pseudo_labels(arrays["loc_eval"], arrays["old_logits"], **options)
    agrees(labels.partial, arrays["pseudo_gt_seg"])
    agrees(labels.soft, arrays["soft_labels"])
    agrees(labels.target, arrays["target"])
    agrees(labels.image_weight, arrays["batch_weight"])
    if "masks_cleaned" in arrays:
        soft_max = arrays["loc_eval"].softmax(dim=1)
        agrees(mask_by_tags(soft_max, arrays["tags"]), arrays["masks_cleaned"])
        small = torch.nn.functional.interpolate(
            arrays["images_norm"], size=soft_max.shape[-2:], mode="bilinear", align_corners=True
        )
        agrees(mask_by_tags(pamr(small, soft_max), arrays["tags"]), arrays["masks_refined_cleaned"], tolerance=1e-6)


def test_only_hard_labels_reject_an_image(tensors, agrees):
    arrays = tensors("wilson_step_rejected_image")
    arguments, leaves = step_arguments(arrays)
    arguments["alpha"] = 0.5
    agrees(wilson_losses(**arguments, **leaves)["seg"], arrays["loss_seg_out_alpha05"], tolerance=SEG_TOLERANCE)
    options = {k: arguments[k] for k in ("tags", "n_old", "image", "alpha")}
    labels = make_pseudo_labels(arrays["loc_eval"], arrays["old_logits"], **options)
    agrees(labels.image_weight, arrays["batch_weight_alpha05"])
    # An unknown tag cannot reject.
    unknown = arrays["tags"].clone()
    unknown[:, int(arrays["n_old"]) - 1 :] = -1
    assert image_weight(arrays["soft_labels"], unknown, n_old=int(arrays["n_old"])).all()


@pytest.mark.parametrize(
    ("logits", "mask", "suffix"),
    [
        ("logits", "pseudo_gt", ("loss", "grad_logits")),
        ("logits_small", "pseudo_gt", ("loss_small", "grad_logits_small")),
        ("logits", "pseudo_gt_missing", ("loss_missing", "grad_missing")),
    ],
)
def test_balanced_mask_ce(tensors, agrees, value_and_gradient, logits, mask, suffix):
    arrays = tensors("balanced_mask_ce")
    value, gradient = value_and_gradient(lambda z: balanced_mask_ce(z, arrays[mask], arrays["tags"]), arrays[logits])
    agrees(value, arrays[suffix[0]])
    agrees(gradient, arrays[suffix[1]])


def test_localizer_distillation(tensors, agrees, value_and_gradient):
    arrays = tensors("wilson_loc_loss")
    value, gradient = value_and_gradient(lambda z: localizer_distillation(z, arrays["old_logits"]), arrays["loc_raw"])
    agrees(value, arrays["loss"])
    agrees(gradient, arrays["grad_loc_raw"])


def test_encoder_distillation(tensors, agrees, value_and_gradient):
    arrays = tensors("wilson_encoder_mse")
    value, gradient = value_and_gradient(lambda f: encoder_distillation(f, arrays["feat_old"]), arrays["feat"])
    agrees(value, arrays["loss"])
    agrees(gradient, arrays["grad_feat"])
    channels = arrays["feat"].shape[1]
    summed = encoder_distillation(arrays["feat"], arrays["feat_old"], reduction="channel_sum")
    agrees(summed, arrays["loss"] * channels)


@pytest.mark.parametrize(("name", "weights"), [("both", (1.0, 1.0)), ("first", (1.0, 0.0)), ("none", (0.0, 0.0))])
def test_segmentation_loss(tensors, agrees, value_and_gradient, name, weights):
    arrays = tensors("wilson_seg_loss")
    value, gradient = value_and_gradient(
        lambda z: segmentation_loss(z, arrays["target"], torch.tensor(weights, dtype=torch.float64)),
        arrays["seg_logits"],
    )
    agrees(value, arrays[f"loss_{name}"])
    agrees(gradient, arrays[f"grad_{name}"])


def test_suppression_lowers_old_classes_where_a_new_one_is_claimed(tensors):
    arrays = tensors("wilson_step_a09_min")
    old, soft, n_old = arrays["old_logits"].sigmoid(), arrays["soft_labels"], int(arrays["n_old"])
    plain = segmentation_target(old, soft, n_old=n_old)
    lowered = segmentation_target(old, soft, n_old=n_old, suppress_claimed=True)
    claim = soft[:, n_old:].amax(dim=1, keepdim=True)
    assert (lowered[:, 1:n_old] <= 1 - claim).all()
    assert (lowered <= plain).all()
    assert (lowered < plain).any()
    kept = (plain[:, 1:n_old] <= 1 - claim).expand_as(plain[:, 1:n_old])
    assert torch.equal(lowered[:, 1:n_old][kept], plain[:, 1:n_old][kept])
    assert torch.equal(lowered[:, n_old:], plain[:, n_old:])


def test_tags_of_old_classes_enter_the_tag_loss_on_request(tensors):
    arrays = tensors("wilson_step_a05_min")
    arguments, leaves = step_arguments(arrays)
    foreground = arrays["tags"].shape[1]
    new_only = wilson_losses(**arguments, **leaves)
    everything = wilson_losses(**arguments, **leaves, n_tag_columns=foreground)
    assert everything["cls"] != new_only["cls"]
    # Unknown old tags: back to the new classes alone.
    arguments["tags"] = arrays["tags"].clone()
    arguments["tags"][:, : int(arrays["n_old"]) - 1] = -1
    unknown = wilson_losses(**arguments, **leaves, n_tag_columns=foreground)
    torch.testing.assert_close(unknown["cls"], new_only["cls"])
    torch.testing.assert_close(unknown["sss"], new_only["sss"])
    torch.testing.assert_close(unknown["seg"], new_only["seg"])


def test_a_step_in_bfloat16_is_computed_in_float32(tensors):
    arrays = tensors("wilson_step_a05_min")
    arguments, leaves = step_arguments(arrays)
    names = ("loc_eval", "old_logits", "old_body", "image")
    low = {name: arguments[name].to(torch.bfloat16) for name in names} | {
        name: leaf.detach().to(torch.bfloat16).requires_grad_() for name, leaf in leaves.items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = wilson_losses(**(arguments | low))
    for key, stored in LOSS_KEYS.items():
        assert losses[key].dtype == torch.float32
        torch.testing.assert_close(losses[key].double(), arrays[stored], rtol=0.05, atol=0.01)
    sum(losses.values()).backward()
    assert all(torch.isfinite(low[name].grad).all() for name in leaves)
