"""Heads of the tag baselines against the published implementations' arrays, and on real backbones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cilseg.errors import InputError
from cilseg.losses.affinity import affinity_loss, affinity_targets, pair_affinity
from cilseg.losses.cam import cam_loss
from cilseg.losses.eps import eps_losses
from cilseg.losses.seam import seam_losses
from cilseg.losses.single_stage import single_stage_losses
from cilseg.models.backbone import Backbone
from cilseg.models.weak import (
    AffinityHead,
    CamHead,
    EpsHead,
    SeamHead,
    SsDecoder,
    StochasticGate,
    gated,
    modulate,
    proportional_width,
)

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])


@pytest.fixture(scope="module")
def arrays_of(reference):
    return lambda name: {key: torch.from_numpy(np.asarray(array)) for key, array in reference(name).items()}


@pytest.fixture(scope="module")
def seen():
    """Levels of a small backbone on two images, and the images."""
    torch.manual_seed(0)
    backbone = Backbone("mobilenetv2_100", output_stride=16).eval()
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        return backbone, backbone.stage_features(image), image


def gradients_reach(module, loss):
    module.zero_grad(set_to_none=True)
    loss.backward()
    without = [key for key, p in module.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    assert any((p.grad != 0).any() for p in module.parameters())


def test_cam_classifier(arrays_of):
    arrays = arrays_of("cam_classifier_head")
    head = CamHead(arrays["weight"].shape[1], n_foreground=len(arrays["weight"])).double().eval()
    head.classifier.load_state_dict({"weight": arrays["weight"]})
    maps = head(arrays["feat"])
    torch.testing.assert_close(maps.mean(dim=(2, 3)), arrays["scores"], **TOLERANCE)
    torch.testing.assert_close(maps.relu(), arrays["cam"], **TOLERANCE)
    loss = cam_loss(maps, arrays["labels"])
    torch.testing.assert_close(loss, arrays["loss"], **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(head.classifier.weight.grad, arrays["grad_weight"], **TOLERANCE)
    # Dropout takes whole channels, in training only.
    assert not torch.equal(head.train()(arrays["feat"]), maps)


def test_modulation(arrays_of):
    arrays = arrays_of("ss_adin")
    torch.testing.assert_close(modulate(arrays["x"], arrays["gamma"], arrays["beta"]), arrays["out"], **TOLERANCE)


def test_stochastic_gate(arrays_of):
    arrays = arrays_of("ss_stochastic_gate")
    psi = float(arrays["psi"])
    deep, shallow = (arrays[key].clone().requires_grad_() for key in ("deep", "shallow"))
    gate = StochasticGate(psi).eval()
    torch.testing.assert_close(gate(deep, shallow), arrays["out_eval"], **TOLERANCE)
    mixed = gated(deep, shallow, arrays["dropout_mask"], psi=psi)
    torch.testing.assert_close(mixed, arrays["out_train"], **TOLERANCE)
    mixed.sum().backward()
    torch.testing.assert_close(deep.grad, arrays["grad_deep"], **TOLERANCE)
    torch.testing.assert_close(shallow.grad, arrays["grad_shallow"], **TOLERANCE)


def test_the_gate_draws_anew_and_its_mean_is_the_deep_features(arrays_of):
    arrays = arrays_of("ss_stochastic_gate")
    torch.manual_seed(0)
    gate = StochasticGate(float(arrays["psi"])).train()
    draws = torch.stack([gate(arrays["deep"], arrays["shallow"]) for _ in range(4000)])
    assert draws.std(dim=0).min() > 0.1 * (arrays["deep"] - arrays["shallow"]).abs().min()
    assert (draws.mean(dim=0) - arrays["deep"]).abs().max() < 6 * draws.std(dim=0).max() / 4000**0.5
    with pytest.raises(InputError, match=r"psi is a share in \[0, 1\), got 1\.5"):
        StochasticGate(1.5)


def test_cam_on_a_backbone(seen):
    _, levels, _ = seen
    head = CamHead(levels[-1].shape[1], n_foreground=3)
    maps = head(levels[-1])
    assert maps.shape == (2, 3, 6, 6)
    gradients_reach(head, cam_loss(maps, TAGS))


def test_eps_on_a_backbone(seen):
    _, levels, _ = seen
    head = EpsHead(levels[-1].shape[1], n_foreground=3)
    maps = head(levels[-1])
    assert maps.shape == (2, 4, 6, 6)
    gradients_reach(head, sum(eps_losses(maps, torch.rand(2, 96, 96), tags=TAGS).values()))


def test_seam_on_a_backbone(seen):
    backbone, levels, image = seen
    torch.manual_seed(0)
    head = SeamHead(backbone.channels, level_channels=backbone.level_channels[2:4], n_foreground=3)
    body, *inner = (level.clone().requires_grad_() for level in (levels[-1], *levels[2:4]))
    maps, refined = head(body, inner, image)
    assert maps.shape == refined.shape == (2, 4, 6, 6)
    # The correlation spreads what is positive: it stays in 0 .. 1.
    assert ((refined >= 0) & (refined <= 1)).all()
    small_image = nn.functional.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=True)
    small_levels = backbone.stage_features(small_image)
    small, refined_small = head(small_levels[-1], small_levels[2:4], small_image)
    losses = seam_losses(maps=maps, refined=refined, maps_small=small, refined_small=refined_small, tags=TAGS)
    gradients_reach(head, sum(losses.values()))
    assert body.grad is not None
    assert all(level.grad is None for level in inner)


@pytest.mark.parametrize("level", [1, 2])
def test_ss_on_a_backbone(seen, level):
    backbone, levels, image = seen
    torch.manual_seed(0)
    channels = backbone.level_channels[level]
    decoder = SsDecoder(backbone.channels, shallow_channels=channels, n_foreground=3, width=channels)
    assert isinstance(decoder.widen, nn.Identity)
    decoder = SsDecoder(backbone.channels, shallow_channels=channels, n_foreground=3)
    logits = decoder(levels[-1], levels[level])
    assert logits.shape == (2, 4, *levels[level].shape[-2:])
    assert (logits[:, 0] == 1).all()
    gradients_reach(decoder, sum(single_stage_losses(logits, image, tags=TAGS).values()))
    with torch.no_grad():
        again = decoder.eval()(levels[-1], levels[level])
        assert torch.equal(again, decoder(levels[-1], levels[level]))
        # Inference is per image: others in the batch and the size of the batch change nothing.
        torch.testing.assert_close(decoder(levels[-1][:1], levels[level][:1]), again[:1], rtol=1e-4, atol=1e-4)


def test_ss_trains_on_one_image(seen):
    backbone, levels, image = seen
    decoder = SsDecoder(backbone.channels, shallow_channels=backbone.level_channels[1], n_foreground=3).train()
    logits = decoder(levels[-1][:1], levels[1][:1])
    gradients_reach(decoder, sum(single_stage_losses(logits, image[:1], tags=TAGS[:1]).values()))


def test_affinity_on_a_backbone(seen):
    backbone, levels, _ = seen
    torch.manual_seed(0)
    head = AffinityHead(backbone.level_channels[2:5])
    features = head(levels[2:5])
    assert features.shape[0] == 2
    assert features.shape[2:] == levels[-1].shape[2:]
    labels = torch.zeros(2, 6, 6, dtype=torch.long)
    labels[:, 2:4, 2:4] = 3
    labels[0, 5] = 255
    targets = affinity_targets(labels, radius=3)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        loss = affinity_loss(pair_affinity(head(levels[2:5]), radius=3), targets)
        gradients_reach(head, loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_widths_follow_the_backbone():
    assert proportional_width(256, body_channels=4096) == 256
    assert proportional_width(256, body_channels=1024) == 128
    assert proportional_width(256, body_channels=320) == 72
    assert proportional_width(48, body_channels=64) == 16
    head = AffinityHead((32, 96, 4096))
    assert [conv.out_channels for conv in head.levels] == [64, 128, 256]
    assert head.joined.out_channels == 448
