"""kill -9 at every kill point, and several processes at once. Children are forked, so they die like real processes."""

from __future__ import annotations

import itertools
import os
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import alembic.runtime.environment  # noqa: F401  once, instead of in every child
import pytest
import sqlalchemy
from registry_bundles import make_bundle, registered, reopened

from benchmarks.registry_scenarios import (
    SCENARIOS,
    Scenario,
    World,
    build,
    copied,
    faults_after,
    folder_world,
    in_child,
    kill_at,
    points_of,
    unique,
)
from benchmarks.servers import in_schema
from cilseg.errors import CilsegError
from cilseg.registry import Registry, killpoints
from cilseg.registry.check import check_registry

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a killed process wrote is in the page cache; waiting for the disk proves nothing here and takes long."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _without_sync)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", _without_sync)


def _without_sync(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    return folder_world(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_kill_at_every_point(template: World, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    points = points_of(copied(template, tmp_path / "traced"), scenario)
    assert {point.partition(".")[0] for point in points} - {"lease"} == {scenario.operation}
    finished = set()
    for number, (point, count) in enumerate(sorted(points.items())):
        # The benchmark registry_kill takes every passing; here a point's first and last take turns.
        world = copied(template, tmp_path / f"w{number}")
        assert kill_at(world, scenario, point, count if number % 2 else 1), point
        finished.add(scenario.done(world.reopened()))
        assert faults_after(world, scenario) == [], point
    assert finished == {True, False}


@pytest.mark.systems
@pytest.mark.parametrize("name", SCENARIOS)
def test_kill_at_every_point_of_a_shared_registry(postgres: str, s3_url: str, tmp_path: Path, name: str) -> None:
    """PostgreSQL and S3: fewer files here, but uploads and commits over the network."""
    scenario = SCENARIOS[name]
    points = points_of(_shared_world(postgres, s3_url, tmp_path / "traced"), scenario)
    assert {p.partition(".")[2] for p in points} >= ({"commit"} if name != "push to a file" else {"rename"})
    for number, point in enumerate(sorted(points)):
        world = _shared_world(postgres, s3_url, tmp_path / f"w{number}")
        assert kill_at(world, scenario, point, 1), point
        assert faults_after(world, scenario) == [], point


def _shared_world(postgres: str, s3_url: str, folder: Path) -> World:
    folder.mkdir()
    urls = [in_schema(postgres, f"k{unique()}") for _ in range(2)]
    for url in urls:
        Registry.open(url).migrate(store=f"{s3_url}-{unique()}")
    return build(folder, *urls)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_act_on_disk_is_behind_its_point(template: World, tmp_path: Path, name: str) -> None:
    """Whatever is synced, renamed or committed was announced by a kill point just before."""
    world, scenario = copied(template, tmp_path / "w"), SCENARIOS[name]
    trace = tmp_path / "acts.txt"

    def work() -> None:
        with trace.open("w") as handle:

            def note(what: str) -> None:
                print(what, file=handle, flush=True)

            def noting(function: Callable[..., object], what: str) -> Callable[..., object]:
                def run(*args: object, **options: object) -> object:
                    note(f"ACT {what}")
                    return function(*args, **options)

                return run

            killpoints.listener = note
            os.fsync = noting(os.fsync, "fsync")  # type: ignore[assignment]
            os.replace = noting(os.replace, "rename")  # type: ignore[assignment]
            os.rename = noting(os.rename, "rename")  # type: ignore[assignment]
            sqlalchemy.event.listen(sqlalchemy.Engine, "commit", _commit_noter(note))
            scenario.act(world.reopened())

    assert in_child(work) == 0
    lines = [line for line in trace.read_text().splitlines() if line]
    acts = [(before, line.removeprefix("ACT ")) for before, line in itertools.pairwise(lines) if line[:4] == "ACT "]
    assert acts
    for before, act in acts:
        step = before.partition(".")[2]
        assert act in step, f"{act} after {before}"


def _commit_noter(note: Callable[[str], None]) -> Callable[[sqlalchemy.Connection], None]:
    def committing(connection: sqlalchemy.Connection) -> None:
        if connection.get_execution_options().get("cilseg_write"):
            note("ACT commit")

    return committing


def test_kill_points_cost_and_do_nothing_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(killpoints.VARIABLE, "other.write:2")
    with killpoints.operation("register"):
        killpoints.point("write")
    monkeypatch.delenv(killpoints.VARIABLE)
    killpoints.point("write")


def test_kill_in_the_first_registration(tmp_path: Path) -> None:
    """Nothing is there yet: not the folder, not the database."""
    bundle = make_bundle(tmp_path / "b")

    def act(world: World) -> object:
        return world.registry.register("animals", bundle, alias="production")

    scenario = Scenario("register", act, lambda _: True)
    points = points_of(World(tmp_path, str(tmp_path / "traced"), ""), scenario)
    assert {"register.create", "register.migrate-commit", "register.log-fsync"} <= set(points)
    for number, (point, count) in enumerate(sorted(points.items())):
        world = World(tmp_path, str(tmp_path / f"r{number}"), "")
        assert kill_at(world, scenario, point, count if number % 2 else 1)
        registry = world.registry
        assert registry.register("animals", bundle, alias="production").ref == "animals:1"
        assert registry.resolve("animals@production").number == 1
        assert check_registry(registry).faults == ()


# Several processes


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def test_processes_moving_one_alias_at_once(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 4)
    registry.promote("animals:1")
    processes, rounds = 5, 6

    def mover(seed: int) -> None:
        mine = reopened(registry)
        done = 0
        for turn in range(rounds):
            try:
                if (seed + turn) % 3 == 0:
                    event = mine.rollback("animals", who=f"p{seed}")
                else:
                    event = mine.promote(f"animals:{(seed * 7 + turn) % 4 + 1}", who=f"p{seed}")
                done += event.moved
            except CilsegError as error:
                assert "no earlier version" in str(error), error  # noqa: PT017
        (tmp_path / f"done-{seed}").write_text(str(done))

    children = [_forked(lambda seed=seed: mover(seed)) for seed in range(processes)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
    done = sum(int((tmp_path / f"done-{seed}").read_text()) for seed in range(processes))
    history = registry.history("animals")
    assert len(history) == done + 1
    for earlier, later in itertools.pairwise(history):
        assert later.from_number == earlier.to_number
        assert later.to_number != later.from_number
    assert registry.resolve("animals@production").number == history[-1].to_number
    assert check_registry(registry).faults == ()


def test_processes_registering_at_once(registry: Registry, tmp_path: Path) -> None:
    shared = make_bundle(tmp_path / "shared", seed=99)
    own = [make_bundle(tmp_path / f"own-{i}", seed=i) for i in range(4)]

    def body(index: int) -> None:
        mine = reopened(registry)
        mine.register("animals", shared)
        mine.register("animals", own[index])

    children = [_forked(lambda index=index: body(index)) for index in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [v.number for v in registry.versions("animals")] == [1, 2, 3, 4, 5]
    assert check_registry(registry).faults == ()
