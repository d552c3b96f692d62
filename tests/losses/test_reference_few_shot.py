"""PIFS against arrays of the published code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cilseg.losses.few_shot import image_prototypes, imprinted_weights, pifs_losses
from cilseg.models.batch_renorm import BatchRenorm2d, renormalise
from cilseg.models.cosine import CosineClassifier


def test_imprinting(tensors, agrees):
    a = tensors("pixel_pifs_imprint_cosine")
    n_old, n_new = a["classes"].tolist()
    got = image_prototypes(a["features"], a["labels"], class_ids=range(n_old, n_old + n_new))
    agrees(got, a["per_image_own"])
    agrees(imprinted_weights(got.sum(dim=0)), a["imprinted"])
    agrees(imprinted_weights(got.sum(dim=0)), a["weights_all"][n_old:])


def test_cosine_classifier(tensors, agrees):
    a = tensors("pixel_pifs_imprint_cosine")
    sizes = a["classes"].tolist()
    classifier = CosineClassifier(a["x"].shape[1], sizes).double()
    with torch.no_grad():
        for step, weight in zip(classifier.steps, a["weights_all"].split(sizes), strict=True):
            step.weight.copy_(weight[:, :, None, None])
    x = a["x"].clone().requires_grad_()
    logits = classifier(x)
    agrees(logits, a["logits"])
    (logits * a["cotangent"]).sum().backward()
    agrees(x.grad, a["grad_x"])
    agrees(torch.cat([step.weight.grad for step in classifier.steps]).flatten(1), a["grad_weights"])
    assert classifier.classes_per_step == tuple(sizes)
    assert list(classifier.state_dict()) == ["steps.0.weight", "steps.1.weight"]


@pytest.mark.parametrize("case", ["normal", "clipped"])
def test_loss(tensors, agrees, value_and_gradient, case):
    a = tensors("pixel_pifs_loss")
    labels, teacher = a[f"{case}_labels"], a[f"{case}_teacher"]
    value, gradient = value_and_gradient(
        lambda z: sum(pifs_losses(z, labels, teacher_logits=teacher).values()), a[f"{case}_logits"]
    )
    agrees(value, a[f"{case}_total"])
    agrees(gradient, a[f"{case}_grad"])
    parts = pifs_losses(a[f"{case}_logits"], labels, teacher_logits=teacher, clip=None)
    agrees(parts["ce"], a[f"{case}_ce"])
    agrees(parts["kd"], a[f"{case}_kd10"])


@pytest.mark.parametrize(("key", "temperature"), [("kd_alpha2", 2.0), ("kd_old_teacher", 1.0)])
def test_other_teachers(tensors, agrees, value_and_gradient, key, temperature):
    a = tensors("pixel_pifs_loss")
    teacher = a["normal_teacher"]
    if key == "kd_old_teacher":
        teacher = teacher[:, : int(a["n_old"])]
    options = {"teacher_logits": teacher, "kd_weight": 1.0, "clip": None, "temperature": temperature}
    value, gradient = value_and_gradient(
        lambda z: pifs_losses(z, a["normal_labels"], **options)["kd"], a["normal_logits"]
    )
    agrees(value, a[f"normal_{key}"])
    agrees(gradient, a[f"normal_grad_{key}"])


def published(x, a, weight, bias, *, kind, training, slope):
    """Activated batch renormalisation as released: unbiased variance, and |w| + eps in the in-place form."""
    eps = float(a["eps"])
    mean, var = a["running_mean"].view(1, -1, 1, 1), a["running_var"].view(1, -1, 1, 1)
    w, b = weight.view(1, -1, 1, 1), bias.view(1, -1, 1, 1)
    if not training:
        gamma = w.abs() + eps if kind == "iabr" else w
        return F.leaky_relu((x - mean) / (var + eps).sqrt() * gamma + b, slope)
    biased, centre = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    n = x.numel() // x.shape[1]
    r = ((biased * n / (n - 1) + eps).sqrt() / (var + eps).sqrt()).detach()
    d = ((centre - mean) / (var + eps).sqrt()).detach()
    gamma = (w * r).abs() + eps if kind == "iabr" else w * r
    return F.leaky_relu((x - centre) / (biased + eps).sqrt() * gamma + b + w * d, slope)


@pytest.mark.parametrize("kind", ["abr", "iabr"])
@pytest.mark.parametrize(("sign", "activation"), [("pos", "identity"), ("pos", "leaky"), ("neg0", "leaky")])
def test_what_the_published_layer_computes(tensors, agrees, kind, sign, activation):
    a = tensors("pixel_pifs_batch_renorm")
    slope = 1.0 if activation == "identity" else 0.01
    leaves = [a["x"].clone(), a[f"weight_{sign}"].clone(), a["bias"].clone()]
    x, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    key = f"{kind}_{sign}_{activation}"
    out = published(x, a, weight, bias, kind=kind, training=True, slope=slope)
    agrees(out, a[f"{key}_train_out"])
    (out * a["cotangent"]).sum().backward()
    for name, leaf in (("x", x), ("weight", weight), ("bias", bias)):
        agrees(leaf.grad, a[f"{key}_train_grad_{name}"])
    agrees(published(x, a, weight, bias, kind=kind, training=False, slope=slope), a[f"{key}_eval_out"])


def layer_of(a, sign):
    layer = BatchRenorm2d(len(a["bias"]), eps=float(a["eps"])).double()
    with torch.no_grad():
        layer.weight.copy_(a[f"weight_{sign}"])
        layer.bias.copy_(a["bias"])
        layer.running_mean.copy_(a["running_mean"])
        layer.running_var.copy_(a["running_var"])
    return layer


@pytest.mark.parametrize("sign", ["pos", "neg0"])
def test_batch_renorm(tensors, agrees, sign):
    a = tensors("pixel_pifs_batch_renorm")
    layer = layer_of(a, sign)
    x = a["x"].clone().requires_grad_()
    out = F.leaky_relu(layer(x), 0.01)
    agrees(out, a[f"fixed_own_{sign}_leaky_train_out"])
    (out * a["cotangent"]).sum().backward()
    agrees(x.grad, a[f"fixed_own_{sign}_leaky_grad_x"])
    if sign == "pos":
        agrees(layer.weight.grad, a["fixed_own_pos_leaky_grad_weight"])
        agrees(layer.bias.grad, a["fixed_own_pos_leaky_grad_bias"])
    agrees(F.leaky_relu(layer.eval()(x), 0.01), out.detach())
    agrees(layer.running_mean, a["running_mean"])
    agrees(layer.running_var, a["running_var"])


def test_replacing_layers_keeps_names_and_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before, weight, names = net.eval()(torch.ones(1, 3, 2, 2)), net[1].weight, list(net.state_dict())
    assert renormalise(net) == 2
    assert renormalise(net) == 0
    assert net[1].weight is weight
    assert list(net.state_dict()) == names
    torch.testing.assert_close(net.train()(torch.ones(1, 3, 2, 2)), before)


def test_one_value_per_channel_trains():
    out = BatchRenorm2d(3)(torch.randn(1, 3, 1, 1, requires_grad=True))
    out.sum().backward()
    assert out.isfinite().all()
