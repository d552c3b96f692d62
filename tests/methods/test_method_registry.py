"""The table of methods and what every method shares."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from cilseg.bundle import Architecture, Preprocessing
from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.errors import InputError
from cilseg.methods import METHODS, Method, StepContext, Supervised, Supervision, method_class
from cilseg.models.segmenter import SegmentationModel


def small(*steps: int) -> SegmentationModel:
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="test_resnet", output_stride=8, head_channels=8, head_dilations=(1,), classes_per_step=steps
    )
    return SegmentationModel(architecture, Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


def test_every_method_says_what_it_is():
    assert {"joint", "ft", "wilson"} <= set(METHODS)
    for name, method in METHODS.items():
        assert issubclass(method, Method)
        assert method.name == name
        assert method_class(name) is method
        assert method.supervision in get_args(Supervision)
        assert method.idea
        assert method.paper
    assert METHODS["wilson"].supervision == "tags"


@pytest.mark.parametrize(("name", "hint"), [("wislon", "Did you mean 'wilson'?"), ("WILSON", "Did you mean 'wilson'?")])
def test_unknown_methods(name, hint):
    with pytest.raises(InputError) as caught:
        method_class(name)
    assert f"Unknown method {name!r}. {hint}" in str(caught.value)
    assert all(known in str(caught.value) for known in METHODS)


def test_each_part_learns_at_its_own_rate():
    rates = OptimiserConfig(lr_body=1, lr_head=2, lr_classifier=3, lr_new_classifier=4, lr_localizer=5)
    parent = small(3, 2)
    method = METHODS["wilson"](StepContext(parent.extended(1), parent, UpdateConfig()))
    groups = {group["lr"]: {id(p) for p in group["params"]} for group in method.parameter_groups(rates)}
    steps = method.model.classifier.steps
    assert groups[1] == {id(p) for p in method.model.backbone.parameters()}
    assert groups[2] == {id(p) for p in method.model.head.parameters()}
    assert groups[3] == {id(p) for step in steps[:2] for p in step.parameters()}
    assert groups[4] == {id(p) for p in steps[2].parameters()}
    assert groups[5] == {id(p) for p in method.localizer.parameters()}
    assert len({i for group in groups.values() for i in group}) == len(list(method.parameters()))


def test_without_new_classes_no_classifier_is_new():
    rates = OptimiserConfig(lr_body=1, lr_head=2, lr_classifier=3, lr_new_classifier=4)
    parent = small(3, 2)
    for method in (
        METHODS["ft"](StepContext(parent.extended(0), parent, UpdateConfig())),
        Supervised(StepContext(small(3, 2), None, UpdateConfig())),
    ):
        assert [group["lr"] for group in method.parameter_groups(rates)] == [1, 2, 3]


def test_frozen_parts_are_not_handed_to_the_optimiser():
    parent = small(3)
    method = METHODS["ft"](StepContext(parent.extended(1), parent, UpdateConfig()))
    method.model.backbone.freeze(4)
    assert len(method.parameter_groups(OptimiserConfig())) == 3


def test_the_old_model_is_no_part_of_the_method():
    parent = small(3)
    method = METHODS["wilson"](StepContext(parent.extended(1), parent, UpdateConfig()))
    assert method.train().old_model is parent
    assert not parent.training
    assert not any(p.requires_grad for p in parent.parameters())
    inside = {id(p) for p in method.parameters()}
    assert not inside & {id(p) for p in parent.parameters()}
    method.double()
    assert next(parent.parameters()).dtype == torch.float64


def test_a_method_without_forward_says_so():
    with pytest.raises(TypeError, match="Method must define forward"):
        Method(StepContext(small(3), None, UpdateConfig()))({}, 0)


def test_wrong_options_are_told_when_a_method_is_built():
    parent = small(3)
    config = UpdateConfig.model_validate({"mib": {"kdweight": 3, "kd_weight": -1}})
    with pytest.raises(InputError) as caught:
        METHODS["mib"](StepContext(parent.extended(1), parent, config))
    assert "unknown key update.mib.kdweight. Did you mean 'kd_weight'?" in str(caught.value)
    assert "update.mib.kd_weight: " in str(caught.value)
