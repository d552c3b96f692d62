"""Policies in files: the ones that come with the package, and every fault of one's own at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cilseg.config import Config, configs_directory
from cilseg.errors import InputError, NotFoundError
from cilseg.evaluate.policy import GatePolicy, load_policy, policy_names
from cilseg.registry.policy import laxer

CONFIGS = configs_directory()


def test_default_file_is_the_default() -> None:
    assert {"default", "strict"} <= set(policy_names(CONFIGS))
    assert load_policy("default", configs=CONFIGS) == GatePolicy() == Config().gate


def test_strict_asks_more_than_default() -> None:
    strict = load_policy("strict", configs=CONFIGS)
    assert laxer(strict.model_dump(), GatePolicy().model_dump()) == []
    less = laxer(GatePolicy().model_dump(), strict.model_dump())
    assert [text.split()[0] for text in less] == [
        "tolerance_points",
        "alpha",
        "min_images_per_class",
        "correction",
        "new_class_floors",
        "new_class_ap_floors",
    ]
    assert less[0] == "tolerance_points 3 instead of 2"


def test_a_missing_policy_is_the_default() -> None:
    assert laxer({}, GatePolicy().model_dump()) == []
    assert laxer(GatePolicy().model_dump(), {}) == []
    assert laxer({"tolerance_points": 3.5}, {}) == ["tolerance_points 3.5 instead of 3"]
    assert laxer({"new_class_floors": {"*": 10}}, {"new_class_floors": {"cow": 9}}) == []
    assert laxer({"new_class_floors": {"cow": 8, "*": 10}}, {"new_class_floors": {"cow": 9}}) != []


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"tolerance_points": 1.5, "new_class_floors": {"cow": 20, "*": 5}}))
    policy = load_policy(path, configs=CONFIGS)
    assert policy.tolerance_points == 1.5
    assert (policy.floor_of("cow"), policy.floor_of("sheep"), policy.ap_floor_of("cow")) == (20, 5, None)


def test_faults_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tolerance: 2\nalpha: 0.9\n")
    with pytest.raises(InputError, match=r"2 faults") as caught:
        load_policy(path, configs=CONFIGS)
    assert "unknown key tolerance. Did you mean 'tolerance_points'?" in str(caught.value)
    assert "alpha: Input should be less than 0.5 (got 0.9)" in str(caught.value)


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"Unknown gate policy 'strickt'. Did you mean 'strict'"):
        load_policy("strickt", configs=CONFIGS)
    with pytest.raises(NotFoundError, match="does not exist"):
        load_policy(tmp_path / "none.yaml", configs=CONFIGS)
    listed = tmp_path / "list.yaml"
    listed.write_text("- 3\n")
    with pytest.raises(InputError, match="must hold keys such as tolerance_points, got list"):
        load_policy(listed, configs=CONFIGS)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(InputError, match="not readable YAML"):
        load_policy(broken, configs=CONFIGS)
