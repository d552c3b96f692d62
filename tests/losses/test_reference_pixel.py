"""The base step's loss against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.pixel import bce_with_ignore

# The published code casts its targets to float32, gradients of the mean included.
TOLERANCE = 1e-5


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_with_ignore(tensors, agrees, value_and_gradient, reduction):
    arrays = tensors("bce_ignore_index")
    value, gradient = value_and_gradient(
        lambda z: bce_with_ignore(z, arrays["target"], reduction=reduction), arrays["logits"]
    )
    agrees(value, arrays[f"loss_{reduction}"], tolerance=TOLERANCE)
    agrees(gradient, arrays[f"grad_{reduction}"], tolerance=TOLERANCE if reduction == "mean" else 1e-9)
    assert value.dtype == torch.float64


def test_the_base_step_counts_void_pixels_in_the_mean(tensors, agrees):
    arrays = tensors("bce_ignore_index")
    agrees(bce_with_ignore(arrays["logits"], arrays["target"]).mean(), arrays["loss_none_then_mean"])


def test_a_void_image_has_no_loss_and_no_gradient(tensors, value_and_gradient):
    arrays = tensors("bce_ignore_index")
    void = torch.full_like(arrays["target"], 255)
    value, gradient = value_and_gradient(lambda z: bce_with_ignore(z, void, reduction="mean"), arrays["logits"] * 1000)
    assert value == 0
    assert (gradient == 0).all()
