"""WILSON's step as a whole: what each setting changes, and that it changes nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from cilseg.bundle import Architecture, Preprocessing
from cilseg.config import UpdateConfig
from cilseg.methods import StepContext
from cilseg.methods.wilson import Wilson, WilsonOptions
from cilseg.models.segmenter import SegmentationModel

KEYS = {"cls", "loc", "enc", "seg", "sss"}
AFTER_WARM_UP = 5
# Foreground columns: two old classes, two new ones.
TAGS = torch.tensor([[1, -1, 1, 0], [0, 1, 0, 1], [-1, -1, 1, 1], [1, 0, 0, 0]], dtype=torch.int8)


@pytest.fixture(scope="module")
def original(images) -> Wilson:
    """A method whose localizer is sharp enough, and knows the images' statistics, for every loss to matter."""
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="test_resnet", output_stride=8, head_channels=8, head_dilations=(1, 2), classes_per_step=(3,)
    )
    parent = SegmentationModel(architecture, Preprocessing(mean=(128.0, 128.0, 128.0), std=(64.0, 64.0, 64.0)))
    method = Wilson(StepContext(parent.extended(2), parent, UpdateConfig()))
    with torch.no_grad():
        method.localizer[-1].weight.mul_(3)
        norms = (method.localizer[1], method.localizer[4])
        for norm in norms:
            norm.momentum = 1.0
        model = copy.deepcopy(method.model).train()  # a copy: the model's own statistics stay those of its parent
        method.localizer.train()(model.backbone(model.normalise(images)))
        for norm in norms:
            norm.momentum = 0.1
    return method


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


@pytest.fixture
def losses(original, images):
    """Losses of a fresh copy: ``losses(tags, epoch=, **options)``; the copy is left in ``losses.method``."""

    def compute(tags: torch.Tensor = TAGS, *, epoch: int = AFTER_WARM_UP, freeze=None, **options):
        method = copy.deepcopy(original)
        method.options = WilsonOptions(**options)
        if freeze is not None:
            freeze(method)
        compute.method = method.train()
        return compute.method({"image": images, "tags": tags}, epoch)

    return compute


def changed(ours, theirs) -> set[str]:
    return {key for key in ours if not torch.equal(ours[key], theirs[key])}


def test_five_losses_all_at_work(losses):
    found = losses()
    assert found.keys() == KEYS
    assert all(value.ndim == 0 and value.isfinite() and value > 0 for value in found.values()), found
    assert not changed(found, losses())


class TestWarmUp:
    def test_no_gradient_for_head_and_classifiers(self, losses):
        found = losses(epoch=AFTER_WARM_UP - 1)
        assert found["seg"] == found["sss"] == 0
        sum(found.values()).backward()
        for part in (losses.method.model.head, losses.method.model.classifier):
            assert all(p.grad is None or not p.grad.any() for p in part.parameters())
        assert losses.method.model.backbone.net.conv1[0].weight.grad.any()
        assert losses.method.localizer[0].weight.grad.any()

    def test_afterwards_everything_learns(self, losses):
        sum(losses().values()).backward()
        assert all(p.grad is not None for p in losses.method.parameters())
        assert losses.method.model.head.red_conv.weight.grad.any()
        assert all(step.weight.grad.any() for step in losses.method.model.classifier.steps)

    def test_its_length(self, losses):
        assert losses(epoch=2, warm_up_epochs=3)["seg"] == 0
        assert losses.method.warm_up_epochs == 3
        assert losses(epoch=3, warm_up_epochs=3)["seg"] > 0
        assert losses(epoch=0, warm_up_epochs=0)["seg"] > 0

    def test_the_localizer_alone(self, losses):
        found = losses(epoch=0, localizer_only_warm_up=True)
        assert not changed(found, losses(epoch=0))
        found = losses(epoch=0, localizer_only_warm_up=True)
        sum(found.values()).backward()
        assert all(p.grad is None for p in losses.method.model.backbone.parameters())
        assert losses.method.localizer[0].weight.grad.any()
        after = losses(localizer_only_warm_up=True)
        assert not changed(after, losses())
        after = losses(localizer_only_warm_up=True)
        sum(after.values()).backward()
        assert losses.method.model.backbone.net.conv1[0].weight.grad.any()


class TestTags:
    def test_absent_and_unknown_differ(self, losses):
        unknown = TAGS.clone()
        unknown[3] = torch.where(unknown[3] == 0, -1, unknown[3])
        assert losses()["cls"] != losses(unknown)["cls"]

    def test_unknown_tags_do_not_enter(self, losses):
        """With one known tag the loss is that tag's alone: the scores of "present" and "absent" add to one."""
        for image, column in ((0, 2), (3, 1)):
            found = []
            for state in (0, 1):
                tags = torch.full_like(TAGS, -1)
                tags[image, column] = state
                found.append(losses(tags)["cls"].double())
            assert sum(value.neg().exp() for value in found).item() == pytest.approx(1, abs=1e-5)
        assert losses(torch.full_like(TAGS, -1))["cls"] == 0

    def test_tags_of_old_classes_are_used_when_given(self, losses):
        without = TAGS.clone()
        without[:, :2] = -1
        assert "cls" in changed(losses(), losses(without))

    def test_tags_of_old_classes_can_be_ignored(self, losses):
        without = TAGS.clone()
        without[:, :2] = -1
        assert not changed(losses(use_old_tags=False), losses(without, use_old_tags=False))
        assert not changed(losses(use_old_tags=False), losses(without))
        assert TAGS[0, 0] == 1  # the batch is not written to


@pytest.mark.parametrize(
    ("options", "touched"),
    [
        ({"alpha": 0.9}, {"seg"}),
        ({"background_mix": 0.3}, {"seg"}),
        ({"renormalise": True}, {"seg"}),
        ({"suppress_claimed": True}, {"seg"}),
        ({"pamr": False}, {"sss"}),
        ({"encoder_sum": True}, {"enc"}),
        ({"ngwp_epsilon": 0.1}, {"cls"}),
        ({"prior_scores": "softmax"}, {"loc"}),
        ({"loss_weights": {}}, set()),
    ],
)
def test_an_option_changes_what_it_claims(losses, options, touched):
    assert changed(losses(**options), losses()) == touched


def test_the_encoder_loss_summed_over_channels(losses):
    mean, total = losses()["enc"], losses(encoder_sum=True)["enc"]
    torch.testing.assert_close(total, mean * losses.method.model.backbone.channels)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_loss_weight_scales_its_loss_alone(losses, key):
    plain = losses()
    for factor in (0.0, 2.5):
        weighted = losses(loss_weights={key: factor})
        torch.testing.assert_close(weighted[key], factor * plain[key])
        assert changed(weighted, plain) == {key}


@pytest.mark.parametrize("prior", ["fixed", "none"])
def test_a_prior_that_is_not_learned(images, prior):
    """The old channels are the old model's scores or a constant; the localizer brings maps of new classes alone."""
    parent = SegmentationModel(
        Architecture(
            backbone="test_resnet", output_stride=8, head_channels=8, head_dilations=(1,), classes_per_step=(3,)
        ),
        Preprocessing(mean=(128.0, 128.0, 128.0), std=(64.0, 64.0, 64.0)),
    )
    method = Wilson(StepContext(parent.extended(2), parent, UpdateConfig(wilson={"prior": prior}))).train()
    assert method.localizer[-1].out_channels == 2
    body, old_body = method.two_bodies({"image": images})
    old = method.old_model.classify(old_body)
    maps = method._maps(body, old)
    assert maps.shape[1] == 5
    assert torch.equal(maps[:, :3], old if prior == "fixed" else torch.zeros_like(old))
    found = method({"image": images, "tags": TAGS}, AFTER_WARM_UP)
    assert all(value.isfinite() for value in found.values())
    sum(found.values()).backward()
    assert method.localizer[0].weight.grad.any()


@pytest.mark.parametrize("stages", [0, 2])
def test_a_shared_frozen_prefix_gives_the_same_losses(losses, stages):
    runs = []

    def shared(method):
        method.model.backbone.freeze(stages)
        method.old_model.backbone.freeze(stages)
        method.old_model.backbone.net.conv1.register_forward_hook(lambda *_: runs.append("shared"))

    def apart(method):
        method.model.backbone.freeze(stages)
        method.old_model.backbone.net.conv1.register_forward_hook(lambda *_: runs.append("apart"))

    together, separate = losses(freeze=shared), losses(freeze=apart)
    assert runs == ["apart"]
    assert not changed(together, separate)
