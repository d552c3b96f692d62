"""A new method is one file and one line: the example of docs/methods.md is registered and takes a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_step import World, class_set, data_for, differing, state_of, take_step, update_config

from cilseg.config import load_config
from cilseg.errors import InputError
from cilseg.methods import METHODS, method_class
from cilseg.train.engine import Tick

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
HEADING = "## Adding a method"


@pytest.fixture(scope="module")
def example() -> str:
    section = PAGE.read_text(encoding="utf-8").split(f"{HEADING}\n")[1]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture
def name(example: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The method of the example, registered."""
    space: dict[str, object] = {"__name__": "example"}
    exec(compile(example, str(PAGE), "exec"), space)
    (made,) = [v for v in space.values() if isinstance(v, type) and v.__module__ == "example" and hasattr(v, "idea")]
    monkeypatch.setitem(METHODS, made.name, made)
    return made.name


def test_it_is_short(example: str) -> None:
    body = example[example.index("class ") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30


def test_it_trains(world: World, name: str, tmp_path: Path) -> None:
    assert method_class(name).describe()["options"] == {"weight": 5.0}
    parent = world.parents["linear"]
    before = state_of(parent)
    ticks: list[Tick] = []
    model = take_step(world, name, tmp_path / "a", on_tick=ticks.append)
    assert model.n_classes == parent.n_classes + 1 == len(class_set(["x"]).names)
    assert not differing(state_of(parent), before)
    assert {"ce", "kd"} <= set(ticks[-1].losses)
    assert all(tick.losses["kd"] >= 0 for tick in ticks)
    other = take_step(world, name, tmp_path / "b", config=update_config(name, weight=0.0))
    assert differing(state_of(model), state_of(other))
    assert data_for(world, name).read_mask is not None


def test_its_options_are_checked_like_those_of_the_others(name: str) -> None:
    config = load_config("tiny", [f"update.method={name}", f"update.{name}.weight=2"], check_methods=True)
    assert config.update.options(name, METHODS[name].options_type).weight == 2
    with pytest.raises(InputError, match=rf"unknown key update.{name}.wait. Did you mean 'weight'\?"):
        load_config("tiny", [f"update.{name}.wait=2"], check_methods=True)
