"""Fixtures of the server's tests: a registry with two hand-made versions, and the application in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_world import opened, two_versions
from starlette.testclient import TestClient

from cilseg.registry import Registry

Open = Callable[..., TestClient]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry of its own, to be changed."""
    return two_versions(tmp_path)


@pytest.fixture
def open_client(registry: Registry) -> Iterator[Open]:
    """Return a function that starts the application with settings and gives its client."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(opened(registry, **settings))


@pytest.fixture
def open_on() -> Iterator[Open]:
    """Return a function that starts the application on a registry and gives its client."""
    with contextlib.ExitStack() as stack:
        yield lambda registry, **settings: stack.enter_context(opened(registry, **settings))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application with ``colours:1``; shared, so nothing is changed through it."""
    with opened(two_versions(tmp_path_factory.mktemp("shared"))) as started:
        yield started
