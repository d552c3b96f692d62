"""The loss for points and scribbles against an independent reconstruction in numpy."""

from __future__ import annotations

import pytest
import torch

from cilseg.classes import UNLABELLED_ID
from cilseg.losses.partial import partial_loss
from cilseg.losses.unbiased import unbiased_kd


@pytest.mark.parametrize("prior", ["", "_objectness"])
@pytest.mark.parametrize("kind", ["points", "scribbles"])
def test_loss(tensors, agrees, value_and_gradient, kind, prior):
    a = tensors("pixel_points_scribbles_own")
    assert int(a["unlabelled_code"]) == UNLABELLED_ID
    target, key = a[kind], kind + prior
    options = {
        "n_old": int(a["n_old"]),
        "class_in_image": a["tags_new"],
        "objectness": a["objectness"] if prior else None,
    }
    value, gradient = value_and_gradient(lambda z: partial_loss(z, target, **options).total, a["logits"])
    agrees(value, a[f"{key}_sum"])
    agrees(gradient, a[f"{key}_grad_sum"])
    loss = partial_loss(a["logits"], target, **options)
    agrees(loss.annotated, a[f"{key}_annotated"])
    agrees(loss.unlabelled, a[f"{key}_unlabelled"])
    agrees(loss.per_pixel, a[f"{key}_map"])
    agrees(loss.per_pixel.sum() / (target != 255).sum(), a[f"{key}_joint_mean"])
    distilled = unbiased_kd(a["logits"], a["old_logits"])
    agrees(distilled, a["loss_ukd"])
    agrees(loss.total + 10 * distilled, a[f"{key}_total_lambda10"])


@pytest.mark.parametrize("pi", [0.0, 1.0])
def test_sure_objectness_and_images_without_new_classes_stay_finite(tensors, value_and_gradient, pi):
    a = tensors("pixel_points_scribbles_own")
    value, gradient = value_and_gradient(
        lambda z: (
            partial_loss(
                z,
                a["points"],
                n_old=int(a["n_old"]),
                class_in_image=torch.zeros_like(a["tags_new"]),
                objectness=torch.full_like(a["objectness"], pi),
            ).total
        ),
        a["logits"],
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
