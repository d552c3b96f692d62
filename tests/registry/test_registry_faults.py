"""kill -9 at every write, and several processes at once. Children are forked, so they die like real processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import alembic.runtime.environment  # noqa: F401  once, instead of in every child
import pytest
import sqlalchemy
from registry_bundles import make_bundle, registered

from cilseg.bundle import verify_files
from cilseg.errors import CilsegError
from cilseg.registry import Registry

MAX_POINTS = 200
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


def _without_sync(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


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


def _killed_at(point: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that kills itself at its ``point``-th write; return whether it came to that."""
    left = [point]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            step()
            return function(*args, **kwargs)

        return run

    def before_statement(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "DELETE", "CREATE TABLE")):
            step()

    def body() -> None:
        for name in ("fsync", "replace", "chmod", "mkdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda *_: step())
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", before_statement)
        work()
        step()

    _, status = os.waitpid(_forked(body), 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _assert_sound(registry: Registry) -> None:
    for version in registry.versions():
        verify_files(version.path, version.manifest)
    rows = [json.loads(line) for line in (registry.root / "events.jsonl").read_text().splitlines()]
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
    made = sum(row["alias"] is None for row in rows)
    assert made == len(registry.versions())


def test_kill_in_first_registration(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    for point in range(1, MAX_POINTS):
        root = tmp_path / f"registry-{point}"
        killed = _killed_at(
            point, lambda root=root: Registry.open(root).register("animals", bundle, alias="production")
        )
        registry = Registry.open(root)
        assert registry.register("animals", bundle, alias="production").ref == "animals:1"
        assert registry.resolve("animals@production").number == 1
        _assert_sound(registry)
        if not killed:
            break
    assert not killed
    assert point > 30


def test_kill_in_a_later_registration_leaves_before_or_after(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    registry = Registry.open(root)
    registered(registry, tmp_path, 1)
    registry.promote("animals:1")
    seen, count = set(), 1
    for point in range(1, MAX_POINTS):
        bundle = make_bundle(tmp_path / f"n-{point}", seed=point + 100, size=100 + point)
        killed = _killed_at(
            point, lambda bundle=bundle: Registry.open(root).register("animals", bundle, alias="candidate")
        )
        after = Registry.open(root)
        numbers = [v.number for v in after.versions()]
        assert numbers in (list(range(1, count + 1)), list(range(1, count + 2)))
        seen.add(len(numbers) - count)
        assert after.resolve("animals@production").number == 1
        if len(numbers) > count:  # the version and its alias come together
            assert after.resolve("animals@candidate").number == numbers[-1]
        count += 1
        assert after.register("animals", bundle, alias="candidate").number == count
        _assert_sound(after)
        if not killed:
            break
    assert not killed
    assert seen == {0, 1}


def test_kill_in_promotion_and_rollback(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    registry = Registry.open(root)
    registered(registry, tmp_path, 2)
    registry.promote("animals:1")
    for point in range(1, MAX_POINTS):
        registry.promote("animals:1")
        events = len(registry.history("animals"))
        killed = _killed_at(point, lambda: Registry.open(root).promote("animals:2"))
        after = Registry.open(root)
        moved = after.resolve("animals@production").number == 2
        assert len(after.history("animals")) == events + moved
        after.promote("animals:2")
        killed_back = _killed_at(point, lambda: Registry.open(root).rollback("animals"))
        assert Registry.open(root).resolve("animals@production").number in (1, 2)
        _assert_sound(after)
        if not killed and not killed_back:
            break
    assert not killed


def test_kill_while_replacing_an_attachment(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    registry = Registry.open(root)
    (version,) = registered(registry, tmp_path, 1)
    seen = set()
    for point in range(1, MAX_POINTS):
        registry.attach(version, "gate.json", b"old", kind="gate", metadata={"is": "old"})
        killed = _killed_at(
            point,
            lambda: Registry.open(root).attach(version, "gate.json", b"new", kind="gate", metadata={"is": "new"}),
        )
        found = registry.attachment(version, "gate.json")
        assert found.path.read_bytes().decode() == found.metadata["is"]
        seen.add(found.metadata["is"])
        if not killed:
            break
    assert not killed
    assert seen == {"old", "new"}


def test_processes_moving_one_alias_at_once(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    registry = Registry.open(root)
    registered(registry, tmp_path, 4)
    registry.promote("animals:1")
    processes, rounds = 5, 12

    def mover(seed: int) -> None:
        mine = Registry.open(root)
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
    _assert_sound(registry)


def test_processes_registering_at_once(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    shared = make_bundle(tmp_path / "shared", seed=99)
    own = [make_bundle(tmp_path / f"own-{i}", seed=i) for i in range(4)]

    def body(index: int) -> None:
        mine = Registry.open(root)
        mine.register("animals", shared)
        mine.register("animals", own[index])

    children = [_forked(lambda index=index: body(index)) for index in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    registry = Registry.open(root)
    assert [v.number for v in registry.versions("animals")] == [1, 2, 3, 4, 5]
    _assert_sound(registry)
