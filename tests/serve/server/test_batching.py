"""The queue: what shares a run, what is refused, and what never runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from cilseg.errors import CilsegError, InputError
from cilseg_serve.server.batching import Batcher
from cilseg_serve.server.deployment import images_per_run
from cilseg_serve.server.errors import DeadlineError, OverloadedError, TooLargeError, UnavailableError
from cilseg_serve.server.settings import Batching

LONG = 1e9


class Gate:
    """A ``run`` that records its batches and answers when it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()

    def __call__(self, works: Sequence[str]) -> list[str]:
        self.batches.append(list(works))
        assert self.open.wait(10)
        if "bad" in works:
            raise InputError("bad image")
        if "broken" in works:
            raise RuntimeError("secret detail")
        return [work.upper() for work in works]


def run(story: Callable[[Gate, Batcher[str, str]], Coroutine[Any, Any, None]], **settings: Any) -> Gate:
    gate = Gate()

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(gate, name="m:1", settings=Batching(**settings))
        await story(gate, batcher)
        gate.open.set()
        await batcher.close()

    asyncio.run(main())
    return gate


def put(batcher: Batcher[str, str], work: str, shape: object = 1, deadline: float = LONG) -> asyncio.Task[Any]:
    batcher.reserve(1)
    return asyncio.create_task(batcher.submit(work, shape=shape, deadline=deadline))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0.01)


def test_equal_shapes_that_wait_share_a_run_and_the_oldest_goes_first() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        first = put(batcher, "a")
        await settle()
        rest = [put(batcher, w, s) for w, s in (("b", 2), ("c", 1), ("d", 2), ("e", 2), ("f", 2), ("g", 1))]
        await settle()
        gate.open.set()
        done = await asyncio.gather(first, *rest)
        assert [d.answer for d in done] == list("ABCDEFG")
        assert [d.batch_size for d in done] == [1, 3, 2, 3, 3, 1, 2]

    assert run(story, max_batch=3).batches == [["a"], ["b", "d", "e"], ["c", "g"], ["f"]]


def test_large_images_run_alone_on_a_cpu() -> None:
    def images(height: int, width: int, device: str, **settings: int) -> int:
        return images_per_run(((height, width), False), settings=Batching(**settings), device=device)

    assert images(512, 512, "cpu") == 1
    assert images(2000, 2000, "cpu") == 1
    assert images(256, 256, "cpu") == 4
    assert images(64, 64, "cpu", max_batch=6) == 6
    assert images(512, 512, "cuda") == 8
    assert images(512, 512, "cpu", batch_pixels=10**9) == 8


def test_a_delay_waits_for_company_but_not_for_ever() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        gate.open.set()
        first = put(batcher, "a")
        await settle()
        second = put(batcher, "b")
        assert [(await t).answer for t in (first, second)] == ["A", "B"]
        assert (await put(batcher, "c")).answer == "C"

    assert run(story, max_batch=2, delay_s=0.3).batches == [["a", "b"], ["c"]]


def test_several_workers_run_at_once() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        tasks = [put(batcher, w, w) for w in "abc"]
        await settle()
        assert len(gate.batches) == 2
        gate.open.set()
        await asyncio.gather(*tasks)

    run(story, workers=2)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        tasks = [put(batcher, "running")]
        await settle()
        tasks += [put(batcher, w) for w in "ab"]
        with pytest.raises(OverloadedError, match="2 images waiting, at most 2 may") as refused:
            batcher.reserve(1)
        assert refused.value.retry_after_s >= 1
        with pytest.raises(TooLargeError, match="3 images in one request, at most 2"):
            batcher.reserve(3)
        gate.open.set()
        await asyncio.gather(*tasks)
        batcher.reserve(2)
        batcher.release(2)
        assert batcher.waiting == 0

    run(story, max_queue=2)


def test_what_is_too_late_or_left_never_runs() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        first = put(batcher, "running")
        await settle()
        now = asyncio.get_running_loop().time()
        late, left = put(batcher, "late", deadline=now + 0.05), put(batcher, "left")
        with pytest.raises(DeadlineError, match="No answer within the deadline"):
            await late
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert batcher.waiting == 0
        gate.open.set()
        assert (await first).answer == "RUNNING"
        with pytest.raises(DeadlineError):
            await put(batcher, "past", deadline=now - 1)

    assert run(story).batches == [["running"]]


def test_one_bad_image_harms_no_other() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        first = put(batcher, "running")
        await settle()
        tasks = [put(batcher, w) for w in ("good", "bad", "broken")]
        gate.open.set()
        assert (await first).answer == "RUNNING"
        assert (await tasks[0]).answer == "GOOD"
        with pytest.raises(InputError, match="bad image"):
            await tasks[1]
        with pytest.raises(CilsegError, match=r"m:1 failed on an image \(RuntimeError\)"):
            await tasks[2]

    run(story)


def test_closing_answers_what_waits_and_takes_nothing_new() -> None:
    async def story(gate: Gate, batcher: Batcher[str, str]) -> None:
        tasks = [put(batcher, w) for w in "abc"]
        await settle()
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(UnavailableError, match="being unloaded"):
            batcher.reserve(1)
        gate.open.set()
        await closing
        assert [t.result().answer for t in tasks] == ["A", "B", "C"]

    run(story, max_batch=1)
