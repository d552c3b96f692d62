"""Local POD against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.errors import InputError
from cilseg.losses.pod import POD_SCALES, fold_new_logits, local_pod_embedding, pod_distance, pod_loss

LAYERS = range(1, 7)


def maps(a, layer):
    new = a[f"new{layer}"]
    return fold_new_logits(new, n_old=int(a["n_old"])) if layer == LAYERS[-1] else new


def loss_of(a, new, **options):
    return pod_loss(
        new[:-1],
        [a[f"old{layer}"] for layer in LAYERS[:-1]],
        logits=new[-1],
        old_logits=a[f"old{LAYERS[-1]}"],
        **options,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_embeddings(tensors, agrees, layer):
    a = tensors("pixel_plop_pod")
    for scale in POD_SCALES:
        agrees(local_pod_embedding(maps(a, layer), scales=(scale,)), a[f"emb_new{layer}_s{scale}"])
    agrees(pod_distance(maps(a, layer), a[f"old{layer}"]), a["dist_per_layer_per_image"][layer - 1])


def test_whole_embeddings_and_folded_logits(tensors, agrees):
    a = tensors("pixel_plop_pod")
    agrees(local_pod_embedding(a["old1"]), a["emb_old1_all"])
    agrees(local_pod_embedding(a["old6"]), a["emb_old6_all"])
    agrees(maps(a, 6), a["logits_new_folded"])


def test_loss(tensors, agrees):
    a = tensors("pixel_plop_pod")
    new = [a[f"new{layer}"].clone().requires_grad_() for layer in LAYERS]
    factors = {"feature_factor": float(a["factors"][0]), "logit_factor": float(a["factors"][-1])}
    loss = loss_of(a, new, **factors)
    agrees(loss, a["loss_pod"])
    for layer, gradient in zip(LAYERS, torch.autograd.grad(loss, new), strict=True):
        agrees(gradient, a[f"grad_new{layer}"])
    agrees(loss_of(a, new), a["loss_pod"])  # the defaults are those of VOC
    plain = loss_of(a, new, schedule=False)
    agrees(plain, a["loss_pod_no_schedule"])
    agrees(plain * a["sqrt_ratio"], a["loss_pod"])
    agrees(loss_of(a, new, feature_factor=0.001, logit_factor=1e-5), a["loss_pod_ade"])
    agrees(loss_of(a, new, logit_factor=1e-4), a["loss_pod_disjoint"])


def test_equal_models_have_no_distance_and_a_finite_gradient(tensors, value_and_gradient):
    a = tensors("pixel_plop_pod")
    value, gradient = value_and_gradient(lambda x: pod_distance(x, a["old1"]), a["old1"])
    assert (value == 0).all()
    assert gradient.isfinite().all()


def test_half_precision_does_not_overflow():
    assert local_pod_embedding(torch.full((1, 2, 8, 8), 1000.0, dtype=torch.float16)).isfinite().all()


def test_maps_too_small_for_the_scales_are_refused():
    with pytest.raises(InputError, match="square cells"):
        local_pod_embedding(torch.zeros(1, 2, 3, 3))
