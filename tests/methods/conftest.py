"""The tiny scenes and base models that the method tests share."""

from __future__ import annotations

import pytest
import torch
from tiny_step import World, make_world


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_world(tmp_path_factory.mktemp("world"))
    torch.set_num_threads(before)
    return made
