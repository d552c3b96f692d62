"""Dynamic batching: images of one size that wait at the same time share a run of the network.

One :class:`Batcher` per loaded version. All of its state belongs to the event loop; only ``run`` is called in threads.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from cilseg.errors import CilsegError
from cilseg_serve.server.errors import DeadlineError, OverloadedError, TooLargeError, UnavailableError
from cilseg_serve.server.settings import Batching

Work = TypeVar("Work")
Answer = TypeVar("Answer")
Clock = Callable[[], float]
_SMOOTHING = 0.2


@dataclass(frozen=True)
class Done(Generic[Answer]):
    """An answer, how long its image waited and ran (seconds), and how many images shared the run."""

    answer: Answer
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(eq=False)
class _Waiting(Generic[Work, Answer]):
    work: Work
    shape: Hashable
    deadline: float
    since: float
    future: asyncio.Future[Done[Answer]]


class Batcher(Generic[Work, Answer]):
    """A bounded queue in front of ``run``.

    The longest waiting image decides which shape runs next. Images whose deadline passed, or whose client left, are
    dropped from the queue and never run.

    Args:
        run: answers a batch of one shape, in order; called in a thread. When it fails on several, each is run alone,
            so that one bad image harms no other.
        largest: how many images of a shape may share a run; default: ``settings.max_batch``.
        on_run: called after each run with its number of images and its duration in seconds.
        name: how messages call it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Answer]],
        *,
        name: str,
        settings: Batching,
        largest: Callable[[Hashable], int] | None = None,
        on_run: Callable[[int, float], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._run, self._name, self._settings = run, name, settings
        self._on_run, self._clock = on_run, clock
        self._largest = largest or (lambda _: settings.max_batch)
        self._queue: dict[int, _Waiting[Work, Answer]] = {}
        self._keys = itertools.count()
        self._reserved = 0
        self._busy = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._image_s = 0.05
        self._workers = settings.workers or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=f"run-{name}")

    @property
    def waiting(self) -> int:
        """Images in the queue or on their way into it."""
        return len(self._queue) + self._reserved

    def reserve(self, count: int) -> None:
        """Take places in the queue for images that are still to be decoded; :meth:`submit` uses them.

        Raises:
            TooLargeError: more images than the queue ever holds.
            OverloadedError: the queue is full.
            UnavailableError: the version is being unloaded.
        """
        limit = self._settings.max_queue
        if self._closed:
            raise UnavailableError(f"{self._name} is being unloaded. Try again.")
        if count > limit:
            raise TooLargeError(f"{count} images in one request, at most {limit} are taken. Send fewer at a time.")
        if self.waiting + count > limit:
            raise OverloadedError(
                f"{self._name} has {self.waiting} images waiting, at most {limit} may. Try again in a moment.",
                retry_after_s=self.backlog_s(),
            )
        self._reserved += count

    def release(self, count: int) -> None:
        """Give back reserved places that were not used."""
        self._reserved -= count

    def backlog_s(self) -> int:
        """Return in how many whole seconds the present queue should be done; 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting * self._image_s / self._workers)))

    async def submit(self, work: Work, *, shape: Hashable, deadline: float) -> Done[Answer]:
        """Queue one image (its place is reserved) and return its answer.

        Args:
            shape: images of equal shape may share a run.
            deadline: on the batcher's clock.

        Raises:
            DeadlineError: it passed.
            CilsegError: the run failed.
        """
        self._reserved -= 1
        now = self._clock()
        if now >= deadline:
            raise self._too_late(0.0)
        key, loop = next(self._keys), asyncio.get_running_loop()
        item = _Waiting[Work, Answer](work, shape, deadline, now, loop.create_future())
        self._queue[key] = item
        self._dispatch()
        try:
            async with asyncio.timeout(deadline - now):
                return await item.future
        except TimeoutError:
            raise self._too_late(self._clock() - now) from None
        finally:
            self._queue.pop(key, None)

    async def close(self) -> None:
        """Let what runs finish; what waits is answered first. Call when nobody submits any more."""
        self._closed = True
        while self._queue or self._busy:
            await asyncio.sleep(0.01)
        self._pool.shutdown(wait=False)

    def _too_late(self, waited_s: float) -> DeadlineError:
        return DeadlineError(
            f"No answer within the deadline (waited {waited_s:.2f} s, {self.waiting} images were waiting). Allow more "
            "time (parameter timeout, header X-Request-Timeout) or send fewer requests."
        )

    def _dispatch(self) -> None:
        while self._queue and self._busy < self._workers:
            keys = self._next_keys()
            oldest = self._queue[keys[0]]
            ripe_s = oldest.since + self._settings.delay_s - self._clock()
            if len(keys) < self._largest(oldest.shape) and ripe_s > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(ripe_s, self._on_timer)
                return
            batch = [self._queue.pop(key) for key in keys]
            self._busy += 1
            loop = asyncio.get_running_loop()
            started = self._clock()
            running = loop.run_in_executor(self._pool, self._run_batch, [item.work for item in batch])
            running.add_done_callback(partial(self._finish, batch, started))

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _next_keys(self) -> list[int]:
        """Return the keys of the next batch: the oldest image, and those of its shape in order."""
        shape = next(iter(self._queue.values())).shape
        alike = (key for key, item in self._queue.items() if item.shape == shape)
        return list(itertools.islice(alike, self._largest(shape)))

    def _run_batch(self, works: list[Work]) -> list[Answer | Exception]:
        try:
            return list(self._run(works))
        except Exception as error:
            if len(works) == 1:
                return [error]
        return [answer for work in works for answer in self._run_batch([work])]

    def _finish(
        self,
        batch: list[_Waiting[Work, Answer]],
        started: float,
        running: asyncio.Future[list[Answer | Exception]],
    ) -> None:
        self._busy -= 1
        run_s = self._clock() - started
        self._image_s += _SMOOTHING * (run_s / len(batch) - self._image_s)
        failure = asyncio.CancelledError() if running.cancelled() else running.exception()
        answers = [failure] * len(batch) if failure is not None else running.result()
        for item, answer in zip(batch, answers, strict=True):
            if item.future.done():
                continue
            if isinstance(answer, BaseException):
                known = isinstance(answer, CilsegError)
                error = answer if known else CilsegError(f"{self._name} failed on an image ({type(answer).__name__}).")
                item.future.set_exception(error)
            else:
                item.future.set_result(Done(answer, started - item.since, run_s, len(batch)))
        if self._on_run is not None:
            self._on_run(len(batch), run_s)
        self._dispatch()
