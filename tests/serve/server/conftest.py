"""Fixtures of the server's tests: a registry with two hand-made versions, and the application in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_world import make_model, register
from starlette.testclient import TestClient

from cilseg.registry import Registry
from cilseg_serve.server.app import make_app
from cilseg_serve.server.settings import ServerSettings

Open = Callable[..., TestClient]


def two_versions(folder: Path) -> Registry:
    """Make ``colours:1`` (production) and ``colours:2``, which swaps red and blue."""
    made = Registry.open(folder / "registry")
    register(made, folder, model=make_model(), seed=1)
    register(made, folder, model=make_model((2, 1, 0), confidence=True), seed=2)
    made.promote("colours:1")
    return made


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry of its own, to be changed."""
    return two_versions(tmp_path)


@contextlib.contextmanager
def opened(registry: Registry, **settings: Any) -> Iterator[TestClient]:
    """Start the application in this process."""
    settings = {"refs": ("colours",), "poll_s": 0.05, "threads": 1, **settings}
    app = make_app(ServerSettings(**settings), registry=registry)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def open_client(registry: Registry) -> Iterator[Open]:
    """Return a function that starts the application with settings and gives its client."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(opened(registry, **settings))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application with ``colours:1``; shared, so nothing is changed through it."""
    with opened(two_versions(tmp_path_factory.mktemp("shared"))) as started:
        yield started
