"""CAM, EPS and SS losses against the published implementations' arrays."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from cilseg.losses.aggregate import focal_penalty, global_average, ngwp, tag_loss
from cilseg.losses.cam import cam_loss
from cilseg.losses.eps import eps_losses, overlap_ratio, saliency_loss, saliency_maps
from cilseg.losses.pamr import pamr
from cilseg.losses.single_stage import PAMR_DILATIONS, self_mask, single_stage_losses, with_background

UNKNOWN = [-1.0, float("nan")]


def as_maps(scores):
    """Scores (B, F) as maps of one pixel, whose mean they are."""
    return scores[:, :, None, None]


class TestCam:
    def test_soft_margin(self, tensors, agrees, value_and_gradient):
        arrays = tensors("multilabel_soft_margin")
        value, gradient = value_and_gradient(lambda s: cam_loss(as_maps(s), arrays["labels"]), arrays["scores"])
        agrees(value, arrays["loss"])
        agrees(value, arrays["bce_mean"])
        agrees(gradient, arrays["grad_scores"])
        entries = tag_loss(as_maps(arrays["scores"]), arrays["labels"], aggregation="gap", reduction="none")
        agrees(entries.mean(dim=1), arrays["loss_per_sample"])

    def test_classifier(self, tensors, agrees, value_and_gradient):
        arrays = tensors("cam_classifier_head")

        def maps(weight):
            return F.conv2d(arrays["feat"], weight)

        value, gradient = value_and_gradient(lambda w: cam_loss(maps(w), arrays["labels"]), arrays["weight"])
        agrees(value, arrays["loss"])
        agrees(gradient, arrays["grad_weight"])
        agrees(global_average(maps(arrays["weight"])), arrays["scores"])
        agrees(maps(arrays["weight"]).relu(), arrays["cam"])

    @pytest.mark.parametrize("unknown", UNKNOWN)
    def test_unknown_tags_are_left_out(self, tensors, agrees, value_and_gradient, unknown):
        arrays = tensors("multilabel_soft_margin")
        tags = arrays["labels"].clone()
        tags[0, 1:] = unknown
        known = tags >= 0
        value, gradient = value_and_gradient(lambda s: cam_loss(as_maps(s), tags), arrays["scores"])
        agrees(value, F.binary_cross_entropy_with_logits(arrays["scores"][known], arrays["labels"][known]))
        assert (gradient[~known] == 0).all()


class TestEps:
    @staticmethod
    def cases(arrays):
        """(suffix, tau, lam) of every stored case; both are in the names, in tenths."""
        cases = [(m[0], int(m[1]) / 10, int(m[2]) / 10) for k in arrays if (m := re.search(r"_t(\d)_l(\d)$", k))]
        assert len(set(cases)) > 1
        return sorted(set(cases))

    def test_saliency_loss(self, tensors, agrees, value_and_gradient):
        arrays = tensors("eps_saliency_loss")
        saliency = arrays["saliency"].squeeze(1)
        for suffix, tau, lam in self.cases(arrays):
            value, gradient = value_and_gradient(
                lambda z, tau=tau, lam=lam: saliency_loss(z, saliency, arrays["labels"], tau=tau, lam=lam),
                arrays["cam"],
            )
            agrees(value, arrays[f"loss{suffix}"])
            agrees(gradient, arrays[f"grad_cam{suffix}"])

    def test_saliency_maps(self, tensors, agrees):
        arrays = tensors("eps_saliency_loss")
        small = F.interpolate(arrays["saliency"], size=arrays["cam"].shape[-2:]).squeeze(1)
        agrees(overlap_ratio(arrays["cam"].softmax(dim=1)[:, :-1], small), arrays["overlap_ratio"])
        for suffix, tau, lam in self.cases(arrays):
            maps = saliency_maps(arrays["cam"], small, arrays["labels"], tau=tau, lam=lam)
            agrees(maps.foreground.unsqueeze(1), arrays[f"fg_map{suffix}"])
            agrees(maps.background.unsqueeze(1), arrays[f"bg_map{suffix}"])
            agrees(maps.predicted.unsqueeze(1), arrays[f"sal_pred{suffix}"])

    def test_both_losses(self, tensors, agrees, value_and_gradient):
        arrays = tensors("eps_saliency_loss")
        saliency = arrays["saliency"].squeeze(1)
        suffix, tau, lam = self.cases(arrays)[0]

        def losses(maps):
            return eps_losses(maps, saliency, tags=arrays["labels"], tau=tau, lam=lam)

        value, gradient = value_and_gradient(lambda z: losses(z)["cls"], arrays["cam"])
        agrees(value, arrays["loss_cls"])
        agrees(gradient, arrays["grad_cam_cls"])
        _, gradient = value_and_gradient(lambda z: sum(losses(z).values()), arrays["cam"])
        agrees(gradient, arrays["grad_cam_cls"] + arrays[f"grad_cam{suffix}"])

    @pytest.mark.parametrize("unknown", UNKNOWN)
    def test_unknown_tags_get_no_gradient_from_the_tags(self, tensors, value_and_gradient, unknown):
        arrays = tensors("eps_saliency_loss")
        tags = arrays["labels"].clone()
        tags[:, 0] = unknown
        saliency = arrays["saliency"].squeeze(1)
        _, gradient = value_and_gradient(lambda z: eps_losses(z, saliency, tags=tags)["cls"], arrays["cam"])
        assert (gradient[:, 0] == 0).all()
        assert (gradient[:, 1:-1] != 0).any()
        absent = torch.where(tags >= 0, tags, 0.0)
        assert saliency_loss(arrays["cam"], saliency, tags) == saliency_loss(arrays["cam"], saliency, absent)


class TestSingleStage:
    def test_scores(self, tensors, agrees, value_and_gradient):
        arrays = tensors("ss_losses")
        logits = with_background(arrays["fg_logits"])
        agrees(logits.softmax(dim=1), arrays["masks"])
        agrees(ngwp(logits), arrays["cls_ngwp"])
        agrees(focal_penalty(logits), arrays["cls_focal"])
        agrees((ngwp(logits) + focal_penalty(logits))[:, 1:], arrays["cls_scores"])
        value, gradient = value_and_gradient(
            lambda z: single_stage_losses(with_background(z), arrays["image_raw"], tags=arrays["tags"], warm_up=True)[
                "cls"
            ],
            arrays["fg_logits"],
        )
        agrees(value, arrays["loss_cls"])
        agrees(gradient, arrays["grad_cls"])

    def test_own_mask(self, tensors, agrees):
        arrays = tensors("ss_losses")
        small = F.interpolate(arrays["image_raw"], size=arrays["masks"].shape[-2:], mode="bilinear", align_corners=True)
        agrees(pamr(small, arrays["masks"], dilations=PAMR_DILATIONS), arrays["masks_pamr"], tolerance=1e-6)
        mask = self_mask(with_background(arrays["fg_logits"]), arrays["image_raw"], tags=arrays["tags"])
        agrees(mask, arrays["pseudo_gt"])

    def test_total(self, tensors, agrees, value_and_gradient):
        arrays = tensors("ss_losses")

        def losses(z):
            return single_stage_losses(with_background(z), arrays["image_raw"], tags=arrays["tags"])

        agrees(losses(arrays["fg_logits"])["mask"], arrays["loss_mask_per_image"].mean())
        value, gradient = value_and_gradient(lambda z: sum(losses(z).values()), arrays["fg_logits"])
        agrees(value, arrays["loss_total"])
        agrees(gradient, arrays["grad_total"])

    def test_warm_up_has_no_mask_loss(self, tensors):
        arrays = tensors("ss_losses")
        logits = with_background(arrays["fg_logits"])
        losses = single_stage_losses(logits, arrays["image_raw"], tags=arrays["tags"], warm_up=True)
        assert losses["mask"] == 0

    @pytest.mark.parametrize("unknown", UNKNOWN)
    def test_unknown_tags_hide_a_class(self, tensors, agrees, unknown):
        arrays = tensors("ss_losses")
        tags = torch.full_like(arrays["tags"], unknown)
        tags[:, -1] = 1
        logits = with_background(arrays["fg_logits"])
        losses = single_stage_losses(logits, arrays["image_raw"], tags=tags)
        agrees(losses["cls"], F.softplus(-(ngwp(logits) + focal_penalty(logits))[:, -1]).mean())
        mask = self_mask(logits, arrays["image_raw"], tags=tags)
        assert (mask[:, 1:-1] == 0).all()
        assert torch.isfinite(losses["mask"])


def test_low_precision_is_widened(tensors):
    """EPS and SS in bfloat16 under autocast: float32 losses near those of the wide arrays, finite gradients."""
    eps, ss = tensors("eps_saliency_loss"), tensors("ss_losses")
    low_maps, low_logits = (a.to(torch.bfloat16).requires_grad_() for a in (eps["cam"], ss["fg_logits"]))
    saliency, image = eps["saliency"].squeeze(1), ss["image_raw"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            *eps_losses(low_maps, saliency.to(torch.bfloat16), tags=eps["labels"], tau=0.0).values(),
            *single_stage_losses(with_background(low_logits), image, tags=ss["tags"], warm_up=True).values(),
        ]
    wide = [
        *eps_losses(eps["cam"], saliency, tags=eps["labels"], tau=0.0).values(),
        *single_stage_losses(with_background(ss["fg_logits"]), image, tags=ss["tags"], warm_up=True).values(),
    ]
    for ours, wanted in zip(losses[:3], wide[:3], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), wanted, rtol=0.05, atol=0.01)
    sum(losses).backward()
    assert torch.isfinite(low_maps.grad).all()
    assert torch.isfinite(low_logits.grad).all()
