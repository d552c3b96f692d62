"""What holds for every method: one real step, the parent left alone, the same seed the same bits, also after a stop."""

from __future__ import annotations

import pytest
import torch
from tiny_step import RUNTIME, World, differing, state_of, take_step

from cilseg.methods import METHODS
from cilseg.models.batch_renorm import BatchRenorm2d
from cilseg.train.engine import Tick


class PowerCutError(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize("name", METHODS)
def test_a_step_and_the_same_step_broken_off_and_resumed(world: World, tmp_path, name):
    parent = world.parent_of(name)
    before = state_of(parent)
    ticks: list[Tick] = []
    model = take_step(world, name, tmp_path / "whole", on_tick=ticks.append)
    assert ticks
    assert all(torch.tensor(list(tick.losses.values())).isfinite().all() for tick in ticks)
    assert not differing(state_of(parent), before)
    assert model.n_classes == parent.n_classes + 1
    assert not model.training
    found = state_of(model)
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())
    assert any(key.startswith("head.") for key in differing({key: found[key] for key in before}, before))
    assert not any(isinstance(module, BatchRenorm2d) for module in model.modules())
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, parent.n_classes + 1, 8, 8)

    count = 0

    def stop(_: Tick) -> None:
        nonlocal count
        count += 1
        if count == len(ticks) - 2:
            raise PowerCutError

    often = RUNTIME.model_copy(update={"checkpoint_every_s": 0.0})
    with pytest.raises(PowerCutError):
        take_step(world, name, tmp_path / "broken", runtime=often, on_tick=stop)
    rest: list[Tick] = []
    resumed = take_step(world, name, tmp_path / "broken", runtime=often, resume=True, on_tick=rest.append)
    assert len(rest) < len(ticks)
    assert not differing(state_of(resumed), found)
    assert not differing(state_of(parent), before)
