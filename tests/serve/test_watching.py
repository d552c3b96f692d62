from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cilseg.bundle import write_manifest
from cilseg.classes import ClassSet
from cilseg.errors import ConflictError, InputError, NotFoundError
from cilseg.registry import Registry, Version
from cilseg_serve import watch
from tests.serve.tiny_model import CLASSES, make_manifest, make_onnx

IMAGE = np.array([[[60, 0, 0], [120, 0, 0], [200, 0, 0]]], np.uint8)
RENAMED = ClassSet.base(["red", "yellow", "blue"])
AddVersion = Callable[..., Version]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "store")


@pytest.fixture
def add(registry: Registry, tmp_path: Path) -> AddVersion:
    """Return a function that registers ``animals:N``, with a model that calls pixels above ``darkest`` red."""
    count = 0

    def build(*, darkest: float, classes: ClassSet = CLASSES, export: bool = True) -> Version:
        nonlocal count
        count += 1
        folder = tmp_path / f"bundle-{count}"
        folder.mkdir()
        (folder / "checkpoint.safetensors").write_bytes(bytes([count]))
        write_manifest(folder, make_manifest(seed=count, classes=classes))
        version = registry.register("animals", folder)
        if export:
            attach(registry, version, darkest)
        return version

    return build


def attach(registry: Registry, version: Version, darkest: float) -> None:
    model = make_onnx(darkest=darkest)
    registry.attach(version, "model.onnx", model, kind="onnx", metadata={"parity": {"passed": True}})


def wait_until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def reds(result: Any) -> int:
    return int((result.mask == 1).sum())


def test_no_call_is_lost_while_the_alias_moves(registry: Registry, add: AddVersion) -> None:
    """Threads hammer one object while a real registry moves its alias back and forth."""
    answers = {add(darkest=50).ref: 3, add(darkest=150).ref: 1}
    registry.promote("animals:1")
    swaps: list[tuple[str, str]] = []
    with watch(
        "animals@production",
        registry=registry,
        interval_s=0.01,
        threads=1,
        on_swap=lambda old, new: swaps.append((old.name, new.name)),
    ) as segmenter:
        assert reds(segmenter.segment(IMAGE)) == 3
        done = threading.Event()
        counts = [0, 0, 0]
        faults: list[object] = []

        def hammer(index: int) -> None:
            try:
                while not done.is_set():
                    pinned = segmenter.current
                    if reds(pinned.segment(IMAGE)) != answers[pinned.name]:
                        faults.append("a model answered like another")
                    seen = {reds(result) for result in segmenter.segment_batch([IMAGE, IMAGE])}
                    if len(seen) != 1 or reds(segmenter.segment(IMAGE)) not in (1, 3):
                        faults.append(seen)
                    counts[index] += 1
            except BaseException as exc:
                faults.append(exc)

        threads = [threading.Thread(target=hammer, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for target in ("animals:2", "animals:1", "animals:2"):
            before = list(counts)
            registry.promote(target)
            wait_until(lambda target=target: segmenter.current.name == target)  # type: ignore[misc]
            assert reds(segmenter.segment(IMAGE)) == answers[target]
            wait_until(lambda before=before: all(now > was for now, was in zip(counts, before, strict=True)))  # type: ignore[misc]
        done.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert swaps == [("animals:1", "animals:2"), ("animals:2", "animals:1"), ("animals:1", "animals:2")]
    registry.promote("animals:1")
    time.sleep(0.05)
    assert segmenter.current.name == "animals:2", "closed: it follows no more, and still answers"
    assert reds(segmenter.segment(IMAGE)) == 1


def test_new_model_has_run_before_it_takes_over(
    registry: Registry, add: AddVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(darkest=50)
    registry.promote("animals:1")
    with watch("animals", registry=registry, interval_s=60) as segmenter:
        segmenter.segment(np.zeros((7, 5, 3), np.uint8))
        ran: list[tuple[str, tuple[int, ...]]] = []
        kind = type(segmenter.current)
        original = kind.run_graph

        def noted(self: Any, batch: Any, outputs: Any) -> Any:
            ran.append((self.name, batch.shape))
            return original(self, batch, outputs)

        monkeypatch.setattr(kind, "run_graph", noted)
        add(darkest=150)
        registry.promote("animals:2")
        assert not ran
        assert segmenter.check()
        assert ran == [("animals:2", (1, 7, 5, 3))]
        assert not segmenter.check()
        assert reds(asyncio.run(segmenter.segment_async(IMAGE))) == 1


def test_renamed_classes_are_refused_unless_asked_for(registry: Registry, add: AddVersion) -> None:
    add(darkest=50)
    registry.promote("animals:1")
    add(darkest=150, classes=RENAMED)
    add(darkest=150, classes=CLASSES.extend(["sheep"], step=1))
    with (
        watch("animals@production", registry=registry, interval_s=60) as careful,
        watch("animals@production", registry=registry, interval_s=60, class_change=True) as ready,
    ):
        registry.promote("animals:2", class_change=True)
        with pytest.raises(
            ConflictError, match=r"animals:2 gives ids .* than animals:1.*2: 'green' -> 'yellow'.*class_change=True"
        ):
            careful.check()
        assert reds(careful.segment(IMAGE)) == 3
        assert careful.segment(IMAGE).class_names == CLASSES.names
        assert ready.check()
        assert ready.segment(IMAGE).class_names == RENAMED.names
        registry.promote("animals:3", class_change=True)
        assert careful.check(), "a class more is no class change"


def test_version_that_cannot_be_loaded_leaves_the_old_one_in_use(
    registry: Registry, add: AddVersion, caplog: pytest.LogCaptureFixture
) -> None:
    add(darkest=50)
    registry.promote("animals:1")
    with watch("animals@production", registry=registry, interval_s=0.01) as segmenter:
        second = add(darkest=0, export=False)
        registry.promote("animals:2")
        wait_until(lambda: segmenter.error is not None)
        assert "animals:2 has no exported model" in str(segmenter.error)
        assert reds(segmenter.segment(IMAGE)) == 3
        attach(registry, second, 150)
        wait_until(lambda: segmenter.current.name == "animals:2")
        assert segmenter.error is None
    said = [record.message for record in caplog.records if "stays in use" in record.message]
    assert said
    assert len(said) == len(set(said)), "each reason is said once, not at every look"


def test_what_cannot_be_watched(registry: Registry, add: AddVersion) -> None:
    add(darkest=50)
    with pytest.raises(InputError, match=r"animals:1 never moves. Watch an alias"):
        watch("animals:1", registry=registry)
    with pytest.raises(InputError, match="interval_s is above 0, got 0"):
        watch("animals", registry=registry, interval_s=0)
    with pytest.raises(NotFoundError, match="no alias 'staging'"):
        watch("animals@staging", registry=registry)
