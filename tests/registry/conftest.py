"""A registry on every pair of database and store: the same tests run on all of them.

``folder`` (SQLite and files in one folder) always; ``postgres`` (PostgreSQL over TCP, files in a folder) and ``s3``
(PostgreSQL, files in an S3 server over HTTP) with ``-m systems``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers import in_schema, postgres_server, s3_server
from cilseg.registry import Registry

BACKENDS = [
    "folder",
    pytest.param("postgres", marks=pytest.mark.systems),
    pytest.param("s3", marks=pytest.mark.systems),
]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a database on a real PostgreSQL server."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Environment of an S3 server that holds the bucket ``models``."""
    with s3_server() as environment:
        yield environment


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """URL of an empty schema of its own."""
    return in_schema(postgres, f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
def s3_url(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty store of its own; the environment leads there."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CILSEG_CACHE", str(tmp_path / "cache"))
    return f"s3://models/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=BACKENDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry."""
    if request.param == "folder":
        return Registry.open(tmp_path / "registry")
    url = request.getfixturevalue("postgres_url")
    store = request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "store")
    made = Registry.open(url)
    made.migrate(store=store)
    return made
