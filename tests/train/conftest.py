"""Generated scenes for the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cilseg.data.scenes import SCENE_CLASSES, generate_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """16 scenes of 64 px with three classes."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    return generate_scenes(root, train=16, val=0, size_px=64, seed=3, classes=SCENE_CLASSES[:3])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
