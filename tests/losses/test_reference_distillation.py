"""Baselines with distillation against the published implementation's arrays."""

from __future__ import annotations

import pytest

from cilseg.losses.distillation import icarl_all_old, icarl_loss, ilt_losses, lwf_losses, lwf_mc_losses
from cilseg.losses.pixel import cross_entropy, focal_ce

# The published code casts one-hot targets to float32.
TOLERANCE = 1e-5


@pytest.mark.parametrize(("key", "mix"), [("b1p0", 1.0), ("bm1", None), ("b0p3", 0.3)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_icarl_loss(tensors, agrees, value_and_gradient, key, mix, reduction):
    a = tensors("icarl_loss")
    value, gradient = value_and_gradient(
        lambda z: icarl_loss(z, a["target"], a["old_logits"], background_mix=mix, reduction=reduction), a["logits"]
    )
    agrees(value, a[f"loss_{key}_{reduction}"], tolerance=TOLERANCE)
    agrees(gradient, a[f"grad_{key}_{reduction}"], tolerance=TOLERANCE)


def test_focal_ce(tensors, agrees, value_and_gradient):
    a = tensors("focal_ce")
    value, gradient = value_and_gradient(lambda z: focal_ce(z, a["target"]), a["logits"])
    agrees(value, a["loss"])
    agrees(gradient, a["grad_logits"])


def test_parts_of_the_baselines(tensors, agrees):
    a = tensors("pixel_mib_siblings")
    lwf = lwf_losses(a["logits"], a["labels"], old_logits=a["old_logits"])
    mc = lwf_mc_losses(a["logits"], a["labels"], old_logits=a["old_logits"])
    agrees(lwf["ce"], a["part_class_lwf"])
    agrees(lwf["ce"], a["part_class_ilt"])
    agrees(mc["bce"], a["part_class_lwfmc"], tolerance=TOLERANCE)
    agrees(mc["kd"], a["part_distill_lwfmc"], tolerance=TOLERANCE)
    ilt = ilt_losses(a["logits"], a["labels"], old_logits=a["old_logits"], body=a["body"], old_body=a["body_old"])
    agrees(ilt["kd"], a["part_kd"])
    agrees(ilt["body"], a["part_body"])


@pytest.mark.parametrize("name", ["ft", "lwf", "lwfmc", "ilt", "icarl_disjoint"])
def test_totals_of_the_baselines(tensors, agrees, value_and_gradient, name):
    a = tensors("pixel_mib_siblings")
    y, old, body = a["labels"], a["old_logits"], {"body": a["body"], "old_body": a["body_old"]}
    total = {
        "ft": lambda z: cross_entropy(z, y),
        "lwf": lambda z: sum(lwf_losses(z, y, old_logits=old).values()),
        "lwfmc": lambda z: sum(lwf_mc_losses(z, y, old_logits=old).values()),
        "ilt": lambda z: sum(ilt_losses(z, y, old_logits=old, **body).values()),
        "icarl_disjoint": lambda z: icarl_all_old(z, y, old),
    }[name]
    value, gradient = value_and_gradient(total, a["logits"])
    agrees(value, a[f"total_{name}"], tolerance=TOLERANCE if name in ("lwfmc", "icarl_disjoint") else None)
    agrees(gradient, a[f"grad_logits_{name}"], tolerance=TOLERANCE if name in ("lwfmc", "icarl_disjoint") else None)


def test_ilt_reaches_the_backbone(tensors, agrees, value_and_gradient):
    a = tensors("pixel_mib_siblings")
    _, gradient = value_and_gradient(
        lambda f: sum(
            ilt_losses(a["logits"], a["labels"], old_logits=a["old_logits"], body=f, old_body=a["body_old"]).values()
        ),
        a["body"],
    )
    agrees(gradient, a["grad_body_ilt"])
