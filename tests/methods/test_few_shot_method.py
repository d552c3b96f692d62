"""PIFS: imprinted classifiers, its own copy as the teacher, ordinary norm layers at the end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_step import OLD, data_for, differing, state_of, take_step, update_config

from cilseg.errors import InputError
from cilseg.methods.pifs import Pifs
from cilseg.models.batch_renorm import BatchRenorm2d


@pytest.fixture(scope="module")
def step(world, tmp_path_factory):
    """What stood in the method after its preparation, and the model that the step made."""
    seen = {}
    original = Pifs.prepare

    def prepare(self, data, stage):
        prepared = original(self, data, stage)
        seen["state"] = state_of(self.model)
        seen["norms"] = [m for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen["teacher"] = self._teacher[0]
        seen["teacher before"] = state_of(self._teacher[0])
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pifs, "prepare", prepare)
        seen["model"] = take_step(world, "pifs", tmp_path_factory.mktemp("pifs"))
    return seen


def test_new_classifiers_are_imprinted(world, step):
    """The mean direction of the new class's features, of unit length; nothing else has moved."""
    parent, new_id = world.parents["cosine"], len(OLD) + 1
    weight = step["state"]["classifier.steps.1.weight"]
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.ones(1))
    before = state_of(parent)
    assert not differing({k: step["state"][k] for k in before}, before)

    data, means = data_for(world, "pifs"), []
    for index in range(data.size):
        pixels = torch.from_numpy(data.read_image(index).copy()).permute(2, 0, 1)[None]
        mask = torch.from_numpy(data.read_mask(index).copy())
        if not (mask == new_id).any():
            continue
        with torch.no_grad():
            features = F.normalize(parent.head(parent.backbone(parent.normalise(pixels))), dim=1)
            full = F.interpolate(features, size=(64, 64), mode="bilinear", align_corners=False)[0]
        means.append(full[:, mask == new_id].mean(dim=1))
    direction = F.normalize(torch.stack(means).sum(dim=0), dim=0)
    assert torch.dot(direction, weight.flatten()) > 0.95


def test_tuned_with_batch_renormalisation_and_left_without(step):
    assert step["norms"]
    assert all(isinstance(norm, BatchRenorm2d) for norm in step["norms"])
    norms = [m for m in step["model"].modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == len(step["norms"])
    assert all(type(norm) is torch.nn.BatchNorm2d for norm in norms)
    assert all(norm.track_running_stats for norm in norms)


def test_the_teacher_is_the_imprinted_copy_and_does_not_learn(step):
    teacher = step["teacher"]
    assert not differing(step["teacher before"], step["state"])
    assert not differing(state_of(teacher), step["teacher before"])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert differing(state_of(step["model"]), step["state"])


def test_running_statistics_stand_still(step):
    found = state_of(step["model"])
    moved = [k for k in differing(found, step["state"]) if "running_" in k or "num_batches" in k]
    assert not moved


def test_a_linear_parent_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="imprints a cosine classifier, and the parent has a linear one") as caught:
        take_step(world, "pifs", tmp_path, parent=world.parents["linear"])
    assert "--set model.classifier=cosine" in str(caught.value)
    assert "mib or wilson can learn" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_its_distillation_has_a_weight(world, tmp_path):
    models = [
        take_step(world, "pifs", tmp_path / str(weight), config=update_config("pifs", kd_weight=weight))
        for weight in (0, 10)
    ]
    assert differing(*map(state_of, models))


def test_a_single_shot(world, tmp_path):
    """One image is a batch of one, which batch renormalisation allows where norm layers are frozen."""
    new_id = len(OLD) + 1
    whole = data_for(world, "pifs")
    first = next(i for i in range(whole.size) if (whole.read_mask(i) == new_id).any())
    data = whole.changed(
        size=1, read_image=lambda _: whole.read_image(first), read_mask=lambda _: whole.read_mask(first)
    )
    config = update_config("pifs")
    frozen = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"freeze_norm": True})})
    assert take_step(world, "pifs", tmp_path, data=data, config=frozen).n_classes == 4
