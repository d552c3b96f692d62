"""PAMR, partial masks and hard labels against the published implementations' arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.pamr import pamr
from cilseg.losses.pseudo_labels import mask_by_tags, one_hot_max, partial_mask, soft_labels

PAMR_CASES = {
    "out_w10": ("mask", {}),
    "out_w1": ("mask", {"iterations": 1}),
    "out_ss10": ("mask", {"dilations": (1, 2, 4, 8, 12, 24)}),
    "out_d1_it1": ("mask", {"iterations": 1, "dilations": (1,)}),
    "out_w10_from17": ("mask17", {}),
}


@pytest.mark.parametrize("case", PAMR_CASES)
def test_pamr(tensors, agrees, case):
    arrays = tensors("pamr")
    mask, options = PAMR_CASES[case]
    refined = pamr(arrays["image"], arrays[mask], **options)
    assert refined.dtype == torch.float64
    agrees(refined, arrays[case], tolerance=1e-6)  # stored in float32
    agrees(pamr(arrays["image"].float(), arrays[mask].float(), **options), arrays[case])


def test_pamr_does_not_see_an_affine_scaling_of_a_channel(tensors, agrees):
    arrays = tensors("pamr")
    scale = torch.tensor([0.2, 3.0, 50.0], dtype=torch.float64)[:, None, None]
    agrees(pamr(arrays["image"] * scale - 7.0, arrays["mask"]), pamr(arrays["image"], arrays["mask"]), tolerance=1e-5)


def test_pamr_computes_in_float32_and_without_gradient(tensors):
    arrays = tensors("pamr")
    mask = arrays["mask"].to(torch.bfloat16).requires_grad_()
    refined = pamr(arrays["image"].to(torch.bfloat16), mask)
    assert refined.dtype == torch.float32
    assert not refined.requires_grad


def test_pamr_of_a_flat_image_and_a_map_smaller_than_the_dilation():
    mask = torch.rand(1, 2, 3, 3)
    refined = pamr(torch.zeros(1, 3, 3, 3), mask / mask.sum(dim=1, keepdim=True))
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(1, 3, 3))


def test_partial_mask(tensors, agrees):
    arrays = tensors("pseudo_gtmask")
    agrees(partial_mask(arrays["mask"]), arrays["out_wilson"])
    agrees(partial_mask(arrays["mask"], keep_ambiguous=True), arrays["out_keep_ambiguous"])


def test_mask_by_tags(tensors, agrees):
    arrays = tensors("pseudo_gtmask")
    # The stored maps are tag-masked already: masking again changes nothing, and takes back what was hidden.
    agrees(mask_by_tags(arrays["mask"], arrays["onehot_tags"]), arrays["mask"])
    hidden = arrays["onehot_tags"] == 0
    spoiled = arrays["mask"].clone()
    spoiled[:, 1:][hidden] = 0.9
    agrees(mask_by_tags(spoiled, arrays["onehot_tags"]), arrays["mask"])
    unknown = torch.where(hidden, -1.0, arrays["onehot_tags"])
    agrees(mask_by_tags(spoiled, unknown), arrays["mask"])
    agrees(mask_by_tags(spoiled, unknown, keep_unknown=True), spoiled)
    unknown = torch.where(hidden, torch.nan, arrays["onehot_tags"])
    agrees(mask_by_tags(spoiled, unknown), arrays["mask"])
    agrees(mask_by_tags(spoiled, unknown, keep_unknown=True), spoiled)


def test_one_hot_max_keeps_ties(tensors, agrees):
    arrays = tensors("binarize_ties")
    hard = one_hot_max(arrays["inp"])
    agrees(hard, arrays["out"])
    assert (hard.sum(dim=1) > 1).any() == (arrays["out"].sum(dim=1) > 1).any()


@pytest.mark.parametrize("name", ["wilson_step_a05_min", "wilson_step_a09_min"])
def test_soft_labels(tensors, agrees, name):
    arrays = tensors(name)
    agrees(soft_labels(arrays["masks_cleaned"], alpha=float(arrays["alpha"])), arrays["soft_labels"])
