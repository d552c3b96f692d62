"""SEAM's normalisation, pixel correlation and losses against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cilseg.losses.cam import cam_loss
from cilseg.losses.pseudo_labels import mask_by_tags
from cilseg.losses.seam import (
    correlate,
    correlation_input,
    cross_regularisation,
    low_activation_loss,
    max_norm,
    max_only,
    seam_losses,
    with_rest_as_background,
)

LEAVES = {
    "maps": "cam_full",
    "refined": "cam_rv_full",
    "maps_small": "cam_small",
    "refined_small": "cam_rv_small",
}


def test_max_norm(tensors, agrees, value_and_gradient):
    arrays = tensors("seam_norm_pieces")
    agrees(max_norm(arrays["x"]), arrays["max_norm"])
    _, gradient = value_and_gradient(lambda x: max_norm(x) * arrays["cotangent"], arrays["x"])
    agrees(gradient, arrays["grad_max_norm"])


def test_max_only(tensors, agrees):
    arrays = tensors("seam_norm_pieces")
    agrees(max_only(arrays["max_onehot_in"]), arrays["max_onehot_out"])


def test_low_activation_loss(tensors, agrees, value_and_gradient):
    arrays = tensors("seam_norm_pieces")
    value, gradient = value_and_gradient(low_activation_loss, arrays["x"])
    agrees(value, arrays["minpool_loss"])
    agrees(gradient, arrays["grad_minpool"])


def test_correlation(tensors, agrees, value_and_gradient):
    arrays = tensors("seam_pcm")

    def correlated(weight, maps=arrays["cam_norm"]):
        return correlate(maps, F.conv2d(arrays["feat"], weight))

    agrees(correlated(arrays["f9_weight"]), arrays["out"])
    agrees(correlated(arrays["f9_weight"], arrays["cam_small"]), arrays["out_small"])
    _, gradient = value_and_gradient(lambda w: correlated(w) * arrays["cotangent"], arrays["f9_weight"])
    agrees(gradient, arrays["grad_f9_weight"])


def test_correlation_input(tensors, agrees):
    arrays = tensors("seam_pcm")
    spread = correlation_input(arrays["cam_raw"].requires_grad_())
    agrees(spread, arrays["cam_raw_normalised"])
    assert not spread.requires_grad


def seam_case(arrays):
    leaves = {ours: arrays[stored].clone().requires_grad_() for ours, stored in LEAVES.items()}
    return leaves, seam_losses(**leaves, tags=arrays["tags"])


def test_losses(tensors, agrees):
    arrays = tensors("seam_losses")
    _, losses = seam_case(arrays)
    agrees(losses["cls"], (arrays["loss_cls1"] + arrays["loss_cls2"]) / 2)
    agrees(losses["cls"] + losses["min"], arrays["loss_cls"])  # the published code logs both as one
    agrees(losses["min"], (arrays["loss_rvmin1"] + arrays["loss_rvmin2"]) / 2)
    agrees(losses["er"], arrays["loss_er"])
    agrees(losses["ecr"], arrays["loss_ecr"])
    agrees(sum(losses.values()), arrays["loss"])


def test_gradients(tensors, agrees):
    arrays = tensors("seam_losses")
    leaves, losses = seam_case(arrays)
    sum(losses.values()).backward()
    for ours, stored in LEAVES.items():
        agrees(leaves[ours].grad, arrays[f"grad_{stored}"])


def test_the_losses_of_one_view(tensors, agrees):
    arrays = tensors("seam_losses")
    tags = arrays["tags"]
    for view, maps, refined in (("1", "cam_full", "cam_rv_full"), ("2", "cam_small", "cam_rv_small")):
        agrees(cam_loss(arrays[maps][:, 1:], tags), arrays[f"loss_cls{view}"])
        agrees(low_activation_loss(mask_by_tags(arrays[refined], tags)[:, 1:]), arrays[f"loss_rvmin{view}"])

    def prepared(name):
        scaled = max_norm(arrays[name])
        size = arrays["cam_small"].shape[-2:]
        return mask_by_tags(F.interpolate(scaled, size=size, mode="bilinear", align_corners=True), tags)

    first, second = (with_rest_as_background(prepared(name)) for name in ("cam_full", "cam_small"))
    # The stored maps are those after the loss has thinned them out in place.
    agrees(max_only(first), arrays["cam1_after"])
    agrees(max_only(second), arrays["cam2_after"])
    agrees(prepared("cam_rv_full"), arrays["cam_rv1_after"])
    agrees(prepared("cam_rv_small"), arrays["cam_rv2_after"])
    agrees(cross_regularisation(prepared("cam_rv_full"), second), arrays["loss_ecr1"])
    agrees(cross_regularisation(prepared("cam_rv_small"), first), arrays["loss_ecr2"])


@pytest.mark.parametrize("unknown", [-1.0, float("nan")])
def test_unknown_tags_hide_a_class_from_everything(tensors, agrees, unknown):
    arrays = tensors("seam_losses")
    hidden = int(arrays["tags"][0].argmax())
    tags = arrays["tags"].clone()
    tags[:, hidden] = unknown
    leaves = {ours: arrays[stored].clone().requires_grad_() for ours, stored in LEAVES.items()}
    losses = seam_losses(**leaves, tags=tags)
    sum(losses.values()).backward()
    for leaf in leaves.values():
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[:, hidden + 1] == 0).all()
    kept = [c for c in range(tags.shape[1]) if c != hidden]
    means = [arrays[name][:, 1:].mean(dim=(2, 3))[:, kept] for name in ("cam_full", "cam_small")]
    agrees(losses["cls"], sum(F.multilabel_soft_margin_loss(m, arrays["tags"][:, kept]) for m in means) / 2)


def test_low_precision_is_widened(tensors):
    arrays = tensors("seam_losses")
    low = {ours: arrays[stored].to(torch.bfloat16).requires_grad_() for ours, stored in LEAVES.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = seam_losses(**low, tags=arrays["tags"])
    wide = seam_losses(**{ours: leaf.detach().double() for ours, leaf in low.items()}, tags=arrays["tags"])
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), wide[key], rtol=1e-4, atol=1e-5)
    sum(losses.values()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in low.values())


def test_correlation_is_not_done_in_low_precision(tensors):
    arrays = tensors("seam_pcm")
    features = F.conv2d(arrays["feat"], arrays["f9_weight"]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spread = correlate(arrays["cam_norm"].float(), features)
    torch.testing.assert_close(spread.double(), arrays["out"], rtol=1e-4, atol=1e-5)
