"""The segmentation network: any image size, growing by a step, frozen norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cilseg.bundle import Architecture, Preprocessing, write_manifest
from cilseg.classes import ClassSet
from cilseg.config import ModelConfig
from cilseg.errors import ArtifactError, InputError
from cilseg.models.build import load_model, new_model, save_weights
from cilseg.models.segmenter import SegmentationModel


def small(stride: int = 8, steps: tuple[int, ...] = (3,)) -> SegmentationModel:
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="test_resnet",
        output_stride=stride,
        head_channels=8,
        head_dilations=(1, 2),
        classes_per_step=steps,
    )
    return SegmentationModel(architecture, Preprocessing(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0)))


def images(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 64), (61, 37), (1, 1), (17, 130)])
def test_any_image_size(stride, size):
    model = small(stride).eval()
    with torch.no_grad():
        logits = model(images(*size))
        assert logits.shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
        full = model.upsample(logits, *size)
    assert full.shape == (2, 3, *size)
    whole = nn.functional.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    assert torch.equal(full, whole[..., : size[0], : size[1]])


def test_normalisation_and_padding():
    model = small()
    x = model.normalise(images(13, 9))
    assert x.shape == (2, 3, 16, 16)
    assert x.dtype == torch.float32
    wanted = (images(13, 9).double() - torch.tensor([120.0, 110, 100]).view(3, 1, 1)) / torch.tensor(
        [60.0, 50, 40]
    ).view(3, 1, 1)
    torch.testing.assert_close(x[..., :13, :9].double(), wanted, rtol=1e-5, atol=1e-5)
    assert not x[..., 13:, :].any()
    assert not x[..., 9:].any()


def test_a_grown_model_answers_as_before_for_the_old_classes():
    parent = small().eval()
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    grown = parent.extended(2).eval()
    assert grown.architecture.classes_per_step == grown.classifier.classes_per_step == (3, 2)
    assert (parent.n_classes, grown.n_classes) == (3, 5)
    with torch.no_grad():
        x = images(40, 33)
        assert torch.equal(grown(x)[:, :3], parent(x))
        for parameter in grown.parameters():
            parameter.add_(1.0)
    assert parent.architecture.classes_per_step == (3,)
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())


def test_growing_by_nothing_copies():
    parent = small(steps=(3, 2))
    twin = parent.extended(0)
    assert twin is not parent
    assert twin.classifier.classes_per_step == (3, 2)
    assert all(torch.equal(value, parent.state_dict()[key]) for key, value in twin.state_dict().items())


def test_frozen_norms_keep_their_statistics_but_learn():
    model = small().train()
    model.freeze_norm()
    model.train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(images(32, 32)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(m.weight.grad is not None for m in norms)
    model.freeze_norm(False)
    model(images(32, 32))
    assert not torch.equal(model.head.map_bn.running_mean, before["head.map_bn.running_mean"])


class TestBuild:
    config = ModelConfig(backbone="test_resnet", output_stride=8, head_channels=8, head_dilations=(1,))
    class_set = ClassSet.base(["cow", "sheep"])

    def test_the_seed_alone_decides_the_start(self):
        states = []
        for seed, noise in ((1, 0), (1, 5), (2, 0)):
            torch.manual_seed(noise)
            drawn_before = torch.get_rng_state()
            states.append(new_model(self.config, self.class_set, seed=seed).state_dict())
            assert torch.equal(torch.get_rng_state(), drawn_before)
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert not torch.equal(states[0]["head.red_conv.weight"], states[2]["head.red_conv.weight"])

    def test_own_normalisation_is_recorded(self):
        config = self.config.model_copy(update={"input_mean": (1.0, 2.0, 3.0), "input_std": (4.0, 5.0, 6.0)})
        model = new_model(config, self.class_set, seed=0)
        assert model.preprocessing.mean == (1, 2, 3)
        assert model.std.flatten().tolist() == [4, 5, 6]
        with pytest.raises(InputError, match=r"both model\.input_mean and model\.input_std, or neither"):
            new_model(self.config.model_copy(update={"input_mean": (1.0, 2.0, 3.0)}), self.class_set, seed=0)

    @pytest.fixture
    def bundle(self, tmp_path, make_manifest):
        model = new_model(self.config, self.class_set, seed=0)
        save_weights(model, tmp_path)
        return model, tmp_path, write_manifest(tmp_path, make_manifest(model, self.class_set))

    @pytest.fixture
    def make_manifest(self):
        from cilseg.bundle import Manifest

        return lambda model, class_set: Manifest(
            classes=class_set.to_json(),
            architecture=model.architecture,
            preprocessing=model.preprocessing,
            method="base",
            seed=0,
            created_at="2024-01-01T00:00:00+00:00",
        )

    def test_saved_and_loaded(self, bundle):
        model, directory, _ = bundle
        loaded = load_model(directory)
        assert not loaded.training
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())

    def test_a_truncated_checkpoint(self, bundle):
        _, directory, _ = bundle
        path = directory / "checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ArtifactError, match=r"cannot be loaded: .*copy the version again or retrain"):
            load_model(directory)

    def test_a_checkpoint_of_another_architecture(self, bundle):
        model, directory, manifest = bundle
        other = model.architecture.model_copy(update={"classes_per_step": (3, 1)})
        with pytest.raises(ArtifactError, match="belongs to another architecture"):
            load_model(directory, manifest.model_copy(update={"architecture": other}))
