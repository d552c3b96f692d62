"""MiB on points and scribbles: what the annotation leaves open, and what a tag leaves open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_step import OLD, data_for, differing, inputs_for, state_of, take_step

from cilseg.classes import UNLABELLED_ID
from cilseg.config import UpdateConfig
from cilseg.methods import METHODS, StepContext

NEW_ID = len(OLD) + 1
PARTIAL = ["mib-points", "mib-scribbles"]


@pytest.fixture
def method(world):
    parent = world.parents["linear"]
    context = StepContext(parent.extended(1), parent, UpdateConfig(), inputs_for(world, "mib-points"))
    return METHODS["mib-points"](context).eval()


@pytest.mark.parametrize("name", PARTIAL)
def test_most_pixels_are_unlabelled(world, name):
    data = data_for(world, name)
    masks = np.stack([data.read_mask(i) for i in range(data.size)])
    allowed = {UNLABELLED_ID, NEW_ID} | ({0} if name == "mib-scribbles" else set())
    assert set(masks.flat) == allowed
    assert (masks == UNLABELLED_ID).mean() > 0.8


def test_points_decide_what_is_learned(world, tmp_path):
    plain = take_step(world, "mib-points", tmp_path / "plain")
    data = data_for(world, "mib-points")
    read = data.read_mask
    assert read is not None
    data.read_mask = lambda index: np.where(read(index) == NEW_ID, UNLABELLED_ID, read(index)).astype(np.uint8)
    without = take_step(world, "mib-points", tmp_path / "without", data=data)
    assert differing(state_of(plain), state_of(without))


def test_unlabelled_pixels_may_be_of_a_tagged_class_only(world, method):
    """Where the new class is tagged absent, its score is pushed down everywhere; where it is tagged, it is not."""
    data = data_for(world, "mib-points")
    batch = data.collate(0, [0, 1])
    batch["mask"] = torch.full_like(batch["mask"], UNLABELLED_ID)
    values = {}
    for state in (1, 0, -1):
        batch["tags"][:, NEW_ID - 1] = state
        values[state] = float(method(batch, 0)["partial"].detach())
    assert values[1] == pytest.approx(0, abs=1e-5)  # background, old or new: everything is allowed
    assert values[0] > 0.01
    assert values[-1] == pytest.approx(values[1])  # an unknown class may be there


def test_tags_of_old_classes_do_not_matter(world, method):
    batch = data_for(world, "mib-points").collate(0, [0, 1])
    found = [float(method({**batch, "tags": tags}, 0)["partial"].detach()) for tags in _old_tags(batch["tags"])]
    assert found[0] == found[1]


def _old_tags(tags):
    for state in (0, 1):
        changed = tags.clone()
        changed[:, : NEW_ID - 1] = state
        yield changed
