"""Schemas and their upgrades, and what goes wrong outside: databases, disks, permissions, object stores."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from registry_bundles import make_bundle, on_folder, registered, reopened

from benchmarks.servers import in_schema
from cilseg.errors import ArtifactError, ConflictError, InputError, NotFoundError, StoreError
from cilseg.registry import Registry
from cilseg.registry.check import check_registry
from cilseg.registry.migrate import upgrade
from cilseg.registry.schema import metadata


def cilseg(*arguments: object, registry: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cilseg.cli.main", *map(str, arguments)],
        env={**os.environ, "CILSEG_REGISTRY": str(registry), "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# Schemas


def test_migrations_make_what_the_code_works_on(registry: Registry) -> None:
    registry.migrate()

    def work(connection: sqlalchemy.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [difference for difference in compare_metadata(context, metadata) if "alembic" not in str(difference)]

    assert registry.database.read(work) == []
    assert registry.migrate() == ("0002", "0002")


@on_folder
def test_a_folder_of_the_first_schema_upgrades_itself(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 2)
    registry.promote("animals:1", why="because")
    history = registry.history("animals")
    database = registry.root / "registry.db"
    rows = {t: _rows(database, f"SELECT * FROM {t} ORDER BY 1, 2") for t in ("events", "aliases")}
    versions = _rows(database, "SELECT name, number, digest, created_at FROM versions")
    for part in registry.root.glob("registry.db*"):
        part.unlink()
    with sqlalchemy.create_engine(f"sqlite:///{database}").begin() as connection:
        upgrade(connection, to="0001")
    with sqlite3.connect(database) as old:
        old.execute("DROP TABLE alembic_version")  # the first cilseg had none
        old.execute("INSERT INTO meta VALUES ('schema', '1')")
        for table, content in {**rows, "versions": versions}.items():
            for row in content:
                old.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    old.close()
    upgraded = reopened(registry)
    assert upgraded.history("animals") == history
    assert upgraded.promote("animals:2").from_number == 1
    assert check_registry(upgraded).faults == ()
    assert _rows(database, "SELECT value FROM meta WHERE key = 'schema'") == [("0002",)]


def _rows(database: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.systems
def test_a_shared_database_is_never_changed_unasked(postgres_url: str, tmp_path: Path) -> None:
    registry = Registry.open(postgres_url, store=tmp_path / "store")
    bundle = make_bundle(tmp_path / "b")
    for use in (registry.names, lambda: registry.register("a", bundle), lambda: registry.check_target("a")):
        with pytest.raises(NotFoundError, match=r"holds no registry.*cilseg migrate --registry .* --store"):
            use()
    with pytest.raises(InputError, match="needs a place for the artifacts"):
        Registry.open(postgres_url).migrate()
    assert _tables(postgres_url) == []
    with sqlalchemy.create_engine(_driver(postgres_url)).begin() as connection:
        upgrade(connection, to="0001")
    with pytest.raises(ArtifactError, match=r"schema 0001, this cilseg works on 0002.*not upgraded unasked.*migrate"):
        Registry.open(postgres_url, store=tmp_path / "store").names()
    assert Registry.open(postgres_url).migrate(store=str(tmp_path / "store")) == ("0001", "0002")
    assert Registry.open(postgres_url).register("a", bundle).ref == "a:1"
    with pytest.raises(ConflictError, match=r"artifacts of this registry are in .*store"):
        Registry.open(postgres_url).migrate(store=str(tmp_path / "elsewhere"))
    with sqlalchemy.create_engine(_driver(postgres_url)).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    for use in (Registry.open(postgres_url).names, Registry.open(postgres_url).migrate):
        with pytest.raises(ArtifactError, match=r"schema 0099, this cilseg knows 0002 and older.*Update cilseg"):
            use()


def _driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def _tables(url: str) -> list[str]:
    return sqlalchemy.inspect(sqlalchemy.create_engine(_driver(url))).get_table_names()


@pytest.mark.systems
def test_events_of_a_shared_database_cannot_be_changed(postgres_url: str, tmp_path: Path) -> None:
    registry = Registry.open(postgres_url)
    registry.migrate(store=str(tmp_path / "store"))
    registered(registry, tmp_path, 1)
    engine = sqlalchemy.create_engine(_driver(postgres_url))
    for statement in ("DELETE FROM events", "UPDATE events SET who = 'nobody'", "TRUNCATE events CASCADE"):
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)


@pytest.mark.systems
@pytest.mark.parametrize("registry", ["postgres", "s3"], indirect=True)
def test_a_lost_shared_database_is_rebuilt(registry: Registry, postgres: str, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    registry.promote("animals:1")
    registry.promote("animals:2", why="because")
    versions, history = registry.versions(), registry.history("animals")
    empty = in_schema(postgres, f"r{os.getpid()}{tmp_path.name[-4:].strip('_')}".lower())
    for url in (empty, registry.address.database_url or ""):  # a new database; the old one, again
        assert Registry.rebuild(url.replace("+psycopg", ""), store=registry.store.url) == 5
        again = Registry.open(url.replace("+psycopg", ""))
        assert (again.versions(), again.history("animals")) == (versions, history)
        assert check_registry(again).faults == ()


# Databases that do not answer


@pytest.mark.systems
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("loopback", "wrong"), "password authentication failed"),
        (lambda url: url.replace("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
        (lambda url: url.replace("127.0.0.1:", "127.0.0.1:1"), r"Cannot connect|cannot be read as a URL"),
    ],
)
def test_wrong_database_urls(postgres_url: str, change: object, message: str) -> None:
    url = change(postgres_url)  # type: ignore[operator]
    done = cilseg("list", registry=url)
    assert done.returncode == 2, done.stderr
    import re

    assert re.search(message, done.stderr)
    assert "loopback" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.systems
def test_a_login_that_may_only_read(postgres: str, postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    registry = Registry.open(postgres_url)
    registry.migrate(store=str(tmp_path / "store"))
    registered(registry, tmp_path, 1)
    schema = postgres_url.rpartition("%3D")[2]
    role = f"reader_{schema}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    reader = postgres_url.replace("postgres:loopback%20only@", f"{role}:x@")
    assert Registry.open(reader).resolve("animals").ref == "animals:1"
    with pytest.raises(InputError, match=r"permission denied.*Nothing was changed"):
        Registry.open(reader).promote("animals:1")
    assert registry.history("animals") == []


@pytest.mark.systems
def test_another_writer_on_a_shared_database(postgres_url: str, tmp_path: Path) -> None:
    registry = Registry.open(postgres_url, lock_timeout_s=0.3)
    registry.migrate(store=str(tmp_path / "store"))
    registered(registry, tmp_path, 1)
    blocker = Registry.open(postgres_url)

    def hold(_: sqlalchemy.Connection) -> None:
        assert registry.resolve("animals").number == 1  # readers do not wait
        with pytest.raises(ConflictError, match=r"Another process has been writing to .* for more than 0.3 s"):
            registry.promote("animals:1")

    blocker.database.write(hold)
    assert registry.promote("animals:1").moved


# Object stores


@pytest.mark.systems
def test_buckets_and_credentials_that_are_wrong(
    s3_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((StoreError, InputError, FileNotFoundError), match=r"(?i)bucket"):
        Registry.open(postgres_url).migrate(store="s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"s3://models/.* cannot be written.*Check the URL"):
            Registry.open(postgres_url).migrate(store=s3_url)
    finally:  # clients are kept by their arguments, not by the environment: the next test would get this one
        s3fs.S3FileSystem.clear_instance_cache()
    assert _tables(postgres_url) == []


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.systems
def test_a_store_without_space(small_disk: Path, tmp_path: Path) -> None:
    registry = Registry.open(small_disk / "registry")
    registered(registry, tmp_path, 1)
    registry.promote("animals:1")
    before = sorted(p.name for p in (registry.root / "versions").iterdir())
    bundle = make_bundle(tmp_path / "big", seed=77, size=2 << 20)
    with pytest.raises(OSError, match="No space left"):
        registry.register("animals", bundle)
    other = Registry.open(tmp_path / "other")
    other.register("big", bundle)
    done = cilseg("pull", tmp_path / "other", registry=registry.root)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    done = cilseg("push", "big", small_disk / "big.tar", registry=tmp_path / "other")
    assert done.returncode == 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["registry"]
    assert sorted(p.name for p in (registry.root / "versions").iterdir()) == before
    assert check_registry(reopened(registry)) == check_registry(registry)
    assert check_registry(registry).faults == ()
    assert list((registry.root / "tmp").iterdir()) == []
