"""Operations of the registry to be killed at their kill points, and what must hold afterwards.

Shared by the benchmark ``registry_kill`` and the tests. A child process is forked and dies by a real SIGKILL at the
point; the parent then looks at what is left, repeats the operation and looks again.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cilseg.bundle import Architecture, Manifest, Preprocessing, write_manifest
from cilseg.classes import ClassSet
from cilseg.errors import CilsegError, NotFoundError
from cilseg.registry import Registry, files, killpoints, package
from cilseg.registry.check import check_registry
from cilseg.registry.collect import collect_garbage
from cilseg.registry.leases import hold
from cilseg.registry.transfer import pull, push

NAME = "animals"
BASE = ClassSet.base(["cat", "dog"])
BLOCK_BYTES = 700
"""Small, so that files are copied in several blocks and a kill can fall between them."""


def make_bundle(folder: Path, *, seed: int, size: int = 2000) -> Path:
    """Write a bundle that differs from others by ``seed``; return its folder."""
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(seed.to_bytes(4, "big") * (size // 4))
    (folder / "labels.txt").write_text("\n".join(BASE.names) + "\n")
    manifest = Manifest(
        classes=BASE.to_json(),
        architecture=Architecture(
            backbone="none", output_stride=16, head_channels=8, head_dilations=(1,), classes_per_step=BASE.sizes
        ),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        method="supervised",
        seed=seed,
        created_at="2026-01-01T00:00:00Z",
    )
    write_manifest(folder, manifest)
    return folder


@dataclass(frozen=True)
class World:
    """Two registries, a bundle that is not registered yet, and a package of one that is."""

    folder: Path
    url: str
    other_url: str

    @cached_property
    def registry(self) -> Registry:
        return Registry.open(self.url)

    @cached_property
    def other(self) -> Registry:
        return Registry.open(self.other_url)

    def reopened(self) -> World:
        """Return the same world as a process sees it that starts now."""
        return World(self.folder, self.url, self.other_url)

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle-new"

    @property
    def tar(self) -> Path:
        return self.folder / "animals-2.tar"


def build(folder: Path, url: str, other_url: str) -> World:
    """Fill ``url`` with three versions, attachments, a history, an old leftover; leave ``other_url`` nearly empty."""
    world = World(folder, url, other_url)
    registry = world.registry
    versions = [registry.register(NAME, make_bundle(folder / f"bundle-{i}", seed=i)) for i in range(3)]
    for version in versions[:2]:
        registry.attach(version, "model.onnx", b"graph" * 300, kind="onnx", metadata={"is": "old"})
        registry.promote(version.ref)
    make_bundle(world.bundle, seed=99)
    push(registry, f"{NAME}:2", world.tar)
    other = make_bundle(folder / "bundle-other", seed=500)
    world.other.register("street", other, alias="production")
    leftover = registry.root / "tmp" / "old"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"left by somebody")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(leftover, (two_days_ago, two_days_ago))
    return world


@dataclass(frozen=True)
class Scenario:
    """An operation, and what is true of a world once it has been done."""

    operation: str
    act: Callable[[World], object]
    done: Callable[[World], bool]


def _attached(world: World) -> str:
    version = world.registry.resolve(f"{NAME}:1")
    found = world.registry.attachment(version, "model.onnx")
    assert found.path.read_bytes() == {"old": b"graph" * 300, "new": b"other" * 300}[found.metadata["is"]]
    return str(found.metadata["is"])


def _attach(world: World) -> object:
    version = world.registry.resolve(f"{NAME}:1")
    return world.registry.attach(version, "model.onnx", b"other" * 300, kind="onnx", metadata={"is": "new"})


def _arrived(world: World) -> bool:
    """Whether the pushed or pulled version is there, which must be with its attachment."""
    try:
        version = world.other.resolve(f"{NAME}:1")
    except NotFoundError:
        return False
    assert "model.onnx" in world.other.attachments(version)
    return True


def _moved_to(number: int) -> Callable[[World], bool]:
    return lambda world: world.registry.resolve(f"{NAME}@production").number == number


def _collected(world: World) -> bool:
    return [v.number for v in world.registry.versions(NAME)] == [1, 2]


def _gc(world: World) -> object:
    # Version 1 is kept by a lease, 2 by its alias; nothing keeps 3.
    registry = world.registry
    with hold(registry, [registry.resolve(f"{NAME}:1")]):
        return collect_garbage(registry, keep_days=0, dry_run=False)


SCENARIOS: Mapping[str, Scenario] = {
    "register": Scenario(
        "register",
        lambda world: world.registry.register(NAME, world.bundle, alias="candidate"),
        lambda world: any("candidate" in v.aliases for v in world.registry.versions(NAME)),
    ),
    "promote": Scenario("promote", lambda world: world.registry.promote(f"{NAME}:3"), _moved_to(3)),
    "rollback": Scenario("rollback", lambda world: world.registry.rollback(NAME, expect="2"), _moved_to(1)),
    "attach": Scenario("attach", _attach, lambda world: _attached(world) == "new"),
    "gc": Scenario("gc", _gc, _collected),
    "push to a file": Scenario(
        "push",
        lambda world: push(world.registry, f"{NAME}:2", world.folder / "pushed.tar"),
        lambda world: (world.folder / "pushed.tar").exists(),
    ),
    "push to a registry": Scenario("push", lambda world: push(world.registry, f"{NAME}:2", world.other), _arrived),
    "pull from a file": Scenario("pull", lambda world: pull(world.other, world.tar), _arrived),
    "pull from a registry": Scenario("pull", lambda world: pull(world.other, world.registry, f"{NAME}:2"), _arrived),
}


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; return its exit status, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for module in (files, package):
                module.BLOCK_BYTES = BLOCK_BYTES  # type: ignore[attr-defined]
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def points_of(world: World, scenario: Scenario) -> Counter[str]:
    """Run the operation in a child and return the kill points it passes, with how often."""
    trace = world.folder / "points.txt"

    def work() -> None:
        with trace.open("w") as handle:
            killpoints.listener = lambda name: print(name, file=handle)
            scenario.act(world.reopened())

    assert in_child(work) == 0
    return Counter(name for name in trace.read_text().split("\n") if name)


def kill_at(world: World, scenario: Scenario, point: str, nth: int) -> bool:
    """Run the operation in a child that dies at the ``nth`` passing of ``point``; return whether it came to that."""

    def work() -> None:
        os.environ[killpoints.VARIABLE] = f"{point}:{nth}"
        scenario.act(world.reopened())

    status = in_child(work)
    assert status in (0, -signal.SIGKILL), f"{point}:{nth} ended with {status}"
    return status == -signal.SIGKILL


def faults_after(world: World, scenario: Scenario) -> list[str]:
    """Look at what a kill left, repeat the operation, look again; return everything that is wrong."""
    before = {NAME: [1, 2, 3]}
    wrong: list[str] = []
    for step in ("after the kill", "after the repetition"):
        world = world.reopened()
        for registry in (world.registry, world.other):
            try:
                report = check_registry(registry)
            except CilsegError as error:
                wrong.append(f"{step}: {error}")
                continue
            wrong += [f"{step}: {fault}" for fault in report.faults]
        served = world.registry.resolve(f"{NAME}@production")
        try:
            served.store.verify(served, deep=True)
        except CilsegError as error:
            wrong.append(f"{step}: production is not whole: {error}")
        if world.other.resolve("street@production").number != 1:
            wrong.append(f"{step}: street@production moved")
        lost = set(before[NAME]) - {v.number for v in world.registry.versions(NAME)}
        if lost - ({3} if scenario.operation == "gc" else set()):
            wrong.append(f"{step}: lost versions {sorted(lost)}")
        finished = scenario.done(world)
        if step == "after the kill" and not finished:
            try:
                scenario.act(world)
            except CilsegError as error:
                wrong.append(f"the repetition failed: {error}")
        if step == "after the repetition" and not finished:
            wrong.append("the repetition did not do it")
    return wrong


def folder_world(folder: Path) -> World:
    """Build a world of two registries in folders."""
    folder.mkdir(parents=True, exist_ok=True)
    return build(folder, str(folder / "registry"), str(folder / "other"))


def copied(world: World, folder: Path) -> World:
    """Copy a world of registries in folders, which is faster than building one."""
    shutil.copytree(world.folder, folder, dirs_exist_ok=True)
    return World(folder, str(folder / "registry"), str(folder / "other"))


def unique() -> str:
    return uuid.uuid4().hex[:12]
