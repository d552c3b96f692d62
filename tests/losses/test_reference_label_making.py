"""From maps to hard labels against the published implementations' arrays."""

from __future__ import annotations

import re

import pytest
import torch

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.label_making import (
    background_of,
    cam_labels,
    constant_background_labels,
    merge_passes,
    over_maximum,
    over_range,
    seam_labels,
    single_stage_labels,
    sure_labels,
    with_background_power,
)
from cilseg.losses.pseudo_labels import mask_by_tags


@pytest.mark.parametrize("method", ["cls", "eps"])
def test_cam_and_eps(tensors, agrees, method):
    arrays = tensors("eps_cam_pseudo_label")
    tags = arrays["labels"].unsqueeze(0)
    summed = arrays[f"{method}_cams"].sum(dim=0, keepdim=True)
    labels = cam_labels(summed, tags, background=float(arrays["thr"]))
    assert torch.equal(labels[0], arrays[f"{method}_pred"].long())
    tagged = summed * tags[:, :, None, None].to(summed.dtype)
    agrees(over_maximum(tagged)[0], arrays[f"{method}_norm"], tolerance=1e-6)
    # The mean of the passes does what their sum does (up to the 1e-5 beside the maximum).
    passes = list(arrays[f"{method}_cams"].unsqueeze(1))
    mean = merge_passes(passes, size_hw=tuple(summed.shape[-2:]), mirrored=[False] * len(passes))
    agrees(mean * len(passes), summed, tolerance=1e-6)
    agrees(over_maximum(mean * tags[:, :, None, None].to(mean.dtype)), over_maximum(tagged), tolerance=1e-3)


def test_seam(tensors, agrees):
    arrays = tensors("seam_inference")
    summed = arrays["cams"].sum(dim=0, keepdim=True)
    tags = arrays["tags"].unsqueeze(0)
    normalised = over_range(summed * tags[:, :, None, None])
    agrees(normalised[0], arrays["norm_cam"])
    threshold = next(int(m[1]) / 100 for k in arrays if (m := re.fullmatch(r"pred_alpha0(\d\d)", k)))
    stored = arrays[f"pred_alpha0{round(threshold * 100)}"]
    assert torch.equal(seam_labels(summed, tags, background=threshold)[0], stored)
    assert torch.equal(constant_background_labels(normalised, background=threshold)[0], stored)
    # The stored keys are the classes that enter the background of the unaries: the tagged ones.
    assert torch.equal(arrays["keys"], tags[0].nonzero().flatten())
    powers = [int(m[1]) for key in arrays if (m := re.fullmatch(r"bg_alpha(\d+)", key))]
    assert powers
    for power in powers:
        agrees(background_of(normalised[:, arrays["keys"]], power=power)[0], arrays[f"bg_alpha{power}"])


def test_single_stage(tensors, agrees):
    arrays = tensors("ss_multiscale_merge")
    passes = list(arrays["masks"].unsqueeze(1))
    windows = [tuple(int(v) for v in row) for row in arrays["pads_top_left_h_w"]]
    height, width = (int(v) for v in arrays["size"])
    mirrored = [index % 2 == 1 for index in range(len(passes))]
    merged = merge_passes(passes, size_hw=(height, width), mirrored=mirrored, windows=windows)
    tags = arrays["tags"].unsqueeze(0)
    power = float(arrays["bg_pow"])
    agrees(with_background_power(mask_by_tags(merged, tags), power=power)[0], arrays["merged"])
    assert torch.equal(single_stage_labels(merged, tags, background_power=power)[0], arrays["pred"])


@pytest.mark.parametrize("unknown", [-1.0, float("nan")])
def test_unknown_tags_hide_a_class(unknown):
    maps = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    tags, absent = torch.tensor([[1.0, unknown, 0.0]] * 2), torch.tensor([[1.0, 0.0, 0.0]] * 2)
    for make in (cam_labels, seam_labels):
        assert set(make(maps, tags).unique().tolist()) == {0, 1}
        assert torch.equal(make(maps, tags), make(maps, absent))
    scores = torch.cat([maps[:, :1], maps], dim=1)
    assert torch.equal(single_stage_labels(scores, tags), single_stage_labels(scores, absent))


def test_passes_are_mirrored_back():
    maps = torch.rand(1, 2, 8, 10, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(maps.flip(-1), (0, 3, 0, 2), value=9.0)
    windows = [(0, 0, 8, 10)] * 2
    merged = merge_passes([maps, padded], size_hw=(8, 10), mirrored=[False, True], windows=windows)
    torch.testing.assert_close(merged, maps)


def test_uneven_lists_of_passes_are_refused():
    with pytest.raises(InputError, match="got 1 passes, 2 of mirrored and no windows"):
        merge_passes([torch.rand(1, 2, 3, 3)], size_hw=(3, 3), mirrored=[False, True])
    with pytest.raises(InputError, match="got 0 passes"):
        merge_passes([], size_hw=(3, 3), mirrored=[])


def test_only_what_both_backgrounds_agree_on_is_sure():
    strength = torch.tensor([0.02, 0.15, 0.9])
    maps = torch.stack([strength, torch.zeros(3)]).view(1, 2, 1, 3)
    # Background scores: power 4: 0.92, 0.52, 0.0001; power 24: 0.62, 0.02, 0.
    assert sure_labels(maps)[0, 0].tolist() == [0, VOID_ID, 1]
