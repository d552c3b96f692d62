"""One small story through the library: scenes of 64 px, a base model of two classes in a registry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from update_story import BaseStory, tell

from cilseg.registry import Registry


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_story(tmp_path_factory: pytest.TempPathFactory) -> BaseStory:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    told = tell(tmp_path_factory.mktemp("update"))
    torch.set_num_threads(before)
    return told


@pytest.fixture
def registry(base_story: BaseStory, tmp_path: Path) -> Registry:
    """A registry of its own with the base model."""
    return base_story.copy(tmp_path / "registry")


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Every file of a registry, run folders included, with its hash."""

    def read(root: Path) -> dict[str, str]:
        return {
            p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*"))
            if p.is_file() and not p.name.startswith("registry.db")
        }

    return read
