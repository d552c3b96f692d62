"""The tiny protocol, opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_protocol import make_scenes, tree, write_protocol

from cilseg.bench.protocol import OpenProtocol, ProtocolRequest, open_protocol

Opener = Callable[..., OpenProtocol]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture
def opened(scenes: Path, tmp_path: Path) -> Opener:
    """Opener of the tiny protocol: keywords replace its sections, ``overrides`` and ``cells`` are the command's."""

    def open_tiny(overrides: tuple[str, ...] = (), cells: tuple[str, ...] = (), **changes: Any) -> OpenProtocol:
        path = write_protocol(tmp_path / "tiny.yaml", tree(scenes, **changes))
        return open_protocol(ProtocolRequest(str(path), work=tmp_path / "work", overrides=overrides, cells=cells))

    return open_tiny


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
