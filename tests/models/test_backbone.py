"""timm backbones: strides, freezing, weights, refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg.models.backbone import Backbone, load_weights, normalisation_of, timm  # timm behind the guard

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "strides"), [("test_resnet", (8, 16, 32)), ("mobilenetv2_100", (8, 16)), ("resnet18", (16,))]
)
def test_stride_and_channels(name, strides):
    for stride in strides:
        backbone = Backbone(name, output_stride=stride).eval()
        with torch.no_grad():
            body = backbone(IMAGES)
        assert body.shape == (2, backbone.channels, 64 // stride, 96 // stride)
        assert backbone.output_stride == stride


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_prefix_and_suffix_make_the_whole(name):
    torch.manual_seed(0)
    backbone = Backbone(name, output_stride=8).eval()
    with torch.no_grad():
        whole = backbone(IMAGES)
        for stages in range(-1, 3):
            backbone.freeze(stages)
            assert torch.equal(backbone.suffix(backbone.prefix(IMAGES)), whole)
            assert torch.equal(backbone(IMAGES), whole)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_frozen_parts_get_no_gradient_and_keep_their_statistics(name):
    torch.manual_seed(0)
    backbone = Backbone(name, output_stride=8).train()
    previous = -1
    for stages in (0, 1, 2):
        backbone.freeze(stages)
        assert backbone.frozen_parts > previous
        previous = backbone.frozen_parts
        backbone.zero_grad(set_to_none=True)
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        backbone.train()(IMAGES).square().sum().backward()
        frozen = {id(p) for part in backbone.parts()[: backbone.frozen_parts] for p in part.parameters()}
        assert frozen
        moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        still = {id(b) for part in backbone.parts()[: backbone.frozen_parts] for b in part.buffers()}
        for key, parameter in backbone.named_parameters():
            assert (parameter.grad is None) == (id(parameter) in frozen), key
        for key, buffer in backbone.named_buffers():
            assert (key in moved) != (id(buffer) in still), key
    backbone.freeze(-1)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.train().modules())


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("resnet19", 16, r"Unknown backbone 'resnet19'\. Did you mean 'resnet1\d[a-z]?'\?"),
        ("test_resnet", 7, r"output_stride must be one of \(4, 8, 16, 32\), got 7"),
        ("test_vit", 16, r"no feature maps at output stride 16: .*Choose a convolutional network"),
    ],
)
def test_refusals(name, stride, message):
    with pytest.raises(InputError, match=message):
        Backbone(name, output_stride=stride)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "test_convnext"])
@pytest.mark.parametrize("frozen", [-1, 1, 2])
def test_features_of_every_level(name, frozen):
    torch.manual_seed(0)
    backbone = Backbone(name, output_stride=16).eval()
    backbone.freeze(frozen)
    with torch.no_grad():  # all three: with gradients, kernels of some processors add up in another order
        levels = backbone.stage_features(IMAGES)
        for ours, timms in zip(levels, backbone.net(IMAGES), strict=True):
            assert torch.equal(ours, timms)
        assert torch.equal(levels[-1], backbone(IMAGES))
    features = backbone.stage_features(IMAGES)
    for level, channels, stride in zip(features, backbone.level_channels, backbone.level_strides, strict=True):
        assert level.shape == (2, channels, 64 // stride, 96 // stride)
    # A level carries a gradient from the first one on that a trainable part made.
    has_gradient = [level.requires_grad for level in features]
    assert has_gradient == sorted(has_gradient)
    assert has_gradient[-1]
    assert all(has_gradient) == (frozen < 0)
    features[-1].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(("name", "n_taps"), [("resnet18", 4), ("mobilenetv2_100", 5), ("test_convnext", 4)])
def test_taps_for_pooled_distillation(name, n_taps):
    torch.manual_seed(0)
    backbone = Backbone(name, output_stride=16).eval()
    for key, parameter in backbone.named_parameters():
        if "bn" in key and key.endswith("weight"):
            nn.init.ones_(parameter)  # timm starts the last norm of a residual branch at zero
    levels = backbone.stage_features(IMAGES)[-n_taps:]
    taps, body = backbone.pod_taps(IMAGES)
    assert torch.equal(body, levels[-1])
    assert len(taps) == n_taps
    for tap, level in zip(taps, levels, strict=True):
        if name == "resnet18":  # the sum has the sign that the activation takes away
            assert (tap < 0).any()
            assert torch.equal(tap.relu(), level)
        else:
            assert torch.equal(tap, level)
    sum(tap.square().mean() for tap in taps).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    # Nothing is left behind that would change a later pass.
    assert torch.equal(backbone(IMAGES), body)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


@pytest.mark.parametrize(("name", "expected"), [("resnet18", 2), ("mobilenetv2_100", 3)])
def test_frozen_stages_have_no_tap(name, expected):
    backbone = Backbone(name, output_stride=16).eval()
    backbone.freeze(2)
    with torch.no_grad():
        taps, body = backbone.pod_taps(IMAGES)
        assert len(taps) == expected
        assert torch.equal(body, backbone(IMAGES))


def test_a_network_that_is_no_sequence_has_levels_but_no_taps():
    backbone = Backbone("hrnet_w18_small", output_stride=32).eval()
    with torch.no_grad():
        assert torch.equal(backbone.stage_features(IMAGES)[-1], backbone(IMAGES))
        with pytest.raises(InputError, match="'hrnet_w18_small' is no sequence of stages"):
            backbone.pod_taps(IMAGES)


def test_too_many_frozen_stages():
    backbone = Backbone("test_resnet", output_stride=8)
    with pytest.raises(InputError, match="'test_resnet' has 4 stages that can be frozen, got 5"):
        backbone.freeze(5)
    assert backbone.frozen_parts == 0


class TestWeights:
    @pytest.fixture
    def saved(self, tmp_path):
        torch.manual_seed(1)
        source = Backbone("test_resnet", output_stride=8)
        path = tmp_path / "weights.safetensors"
        save_file(source.net.state_dict(), path)
        return source, path

    def test_a_local_file_loads(self, saved):
        source, path = saved
        other = Backbone("test_resnet", output_stride=16)
        assert not torch.equal(other.net.state_dict()["conv1.0.weight"], source.net.state_dict()["conv1.0.weight"])
        assert load_weights(other, str(path)) == "weights.safetensors"
        for key, value in source.net.state_dict().items():
            assert torch.equal(other.net.state_dict()[key], value), key

    def test_none_changes_nothing(self, saved):
        source, _ = saved
        before = source.net.state_dict()["conv1.0.weight"].clone()
        assert load_weights(source, None) == load_weights(source, "none") == "none"
        assert torch.equal(source.net.state_dict()["conv1.0.weight"], before)

    @pytest.mark.parametrize("kept", [0.6, 0.0])
    def test_a_truncated_file_is_refused(self, saved, kept):
        source, path = saved
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(ArtifactError, match=r"no readable \.safetensors file .* Download or copy it again"):
            load_weights(source, str(path))

    def test_weights_of_another_network_are_refused(self, saved):
        _, path = saved
        other = Backbone("test_efficientnet", output_stride=8)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ArtifactError, match=r"does not fit backbone 'test_efficientnet': \d+ tensors missing"):
            load_weights(other, str(path))
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(NotFoundError, match=r"nowhere\.safetensors does not exist\. Give a \.safetensors file"):
            load_weights(Backbone("test_resnet", output_stride=8), str(tmp_path / "nowhere.safetensors"))

    def test_an_unreachable_hub(self, saved, monkeypatch):
        source, _ = saved

        def refuse(*_args, **_kwargs):
            raise ConnectionError("name resolution failed")

        monkeypatch.setattr(timm, "create_model", refuse)
        with pytest.raises(InputError, match=r"name resolution failed\. Download them once as \.safetensors"):
            load_weights(source, "hub")

    def test_hub_weights_are_loaded_and_named(self, saved, monkeypatch):
        source, _ = saved
        hub = timm.create_model("test_resnet", pretrained=False)
        monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: hub)  # noqa: ARG005
        assert load_weights(source, "hub").startswith("hub:")
        assert torch.equal(source.net.state_dict()["conv1.0.weight"], hub.state_dict()["conv1.0.weight"])

    def test_weights_of_the_whole_network_in_timms_names(self, tmp_path):
        """Some networks have other names as feature extractors: ``stem_0`` for ``stem.0``."""
        whole = timm.create_model("test_convnext", pretrained=False)
        save_file(whole.state_dict(), tmp_path / "whole.safetensors")
        backbone = Backbone("test_convnext", output_stride=8)
        load_weights(backbone, str(tmp_path / "whole.safetensors"))
        assert torch.equal(backbone.net.state_dict()["stem_0.weight"], whole.state_dict()["stem.0.weight"])
        assert torch.equal(
            backbone.net.state_dict()["stages_3.blocks.0.mlp.fc1.weight"],
            whole.state_dict()["stages.3.blocks.0.mlp.fc1.weight"],
        )

    def test_a_network_without_hub_weights(self, saved, monkeypatch):
        source, _ = saved
        monkeypatch.setattr(timm, "is_model_pretrained", lambda name: False)  # noqa: ARG005
        with pytest.raises(InputError, match="hub has no weights for 'test_resnet'"):
            load_weights(source, "hub")


def test_normalisation_is_timms_own_on_the_byte_scale():
    config = timm.get_pretrained_cfg("mobilenetv2_100")
    mean, std = normalisation_of("mobilenetv2_100")
    assert mean == pytest.approx([255 * v for v in config.mean], abs=1e-3)
    assert std == pytest.approx([255 * v for v in config.std], abs=1e-3)
