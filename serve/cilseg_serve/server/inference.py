"""From the images of a request to their masks: decode, queue, run, within a deadline, while the client is there."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Request

from cilseg.errors import InputError
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.server.batching import Done
from cilseg_serve.server.deployment import Deployment, Job
from cilseg_serve.server.errors import BadRequestError, ClientGoneError, DeadlineError
from cilseg_serve.server.protocol import Picture
from cilseg_serve.server.state import ServerState
from cilseg_serve.server.uploads import check_pixels, decode_upload, seen_size_hw

Array = npt.NDArray[np.uint8]
T = TypeVar("T")
TIMEOUT_HEADER = "X-Request-Timeout"


@dataclass(frozen=True)
class Answered:
    """The images of a request and their answers, in order."""

    deployment: Deployment
    images: tuple[Array, ...]
    done: tuple[Done[Segmentation], ...]

    @property
    def results(self) -> tuple[Segmentation, ...]:
        return tuple(d.answer for d in self.done)

    @property
    def timing(self) -> str:
        """``Server-Timing``: the longest wait, the longest run (milliseconds), the largest batch."""
        queue_ms = 1000 * max(d.queue_s for d in self.done)
        run_ms = 1000 * max(d.run_s for d in self.done)
        return f"queue;dur={queue_ms:.2f}, run;dur={run_ms:.2f}, batch;desc={max(d.batch_size for d in self.done)}"


def deadline_of(request: Request, state: ServerState, timeout_s: float | None = None) -> float:
    """Return when the answer must be there (monotonic clock), from ``timeout_s``, the header, or the default.

    Raises:
        BadRequestError: the header is no number of seconds above 0.
    """
    limits = state.settings.limits
    text = request.headers.get(TIMEOUT_HEADER)
    if timeout_s is None and text is not None:
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s < math.inf:
            raise BadRequestError(f"{TIMEOUT_HEADER} is a number of seconds above 0, got {text[:40]!r}.")
    chosen = limits.timeout_s if timeout_s is None else min(timeout_s, limits.max_timeout_s)
    return float(request.scope["state"]["started"]) + chosen


async def segment_pictures(
    state: ServerState,
    request: Request,
    deployment: Deployment,
    pictures: Sequence[Picture],
    *,
    confidence: bool,
    deadline: float,
) -> Answered:
    """Segment the pictures of a request whose body was read.

    Raises:
        InputError: an image cannot be used, or confidence is asked of a model without it.
        OverloadedError: the queue or the memory is full.
        DeadlineError: too late.
        ClientGoneError: nobody waits any more.
    """
    if confidence and not deployment.segmenter.has_confidence:
        raise BadRequestError(
            f"{deployment.version.ref} was exported without confidence. Export it again with: cilseg export "
            f"{deployment.version.ref} --confidence"
        )
    deployment.batcher.reserve(len(pictures))
    work = _answer(state, deployment, pictures, confidence=confidence, deadline=deadline)
    answered = await _while_connected(request, work)
    labels = (deployment.model, str(deployment.number))
    for done in answered.done:
        state.metrics.queue_seconds.labels(*labels).observe(done.queue_s)
    request.scope["state"]["log"] = {
        "model": deployment.version.ref,
        "images": len(pictures),
        "queue_s": round(max(d.queue_s for d in answered.done), 6),
        "run_s": round(max(d.run_s for d in answered.done), 6),
    }
    return answered


async def _answer(
    state: ServerState, deployment: Deployment, pictures: Sequence[Picture], *, confidence: bool, deadline: float
) -> Answered:
    submitted = 0
    images: list[Array] = []
    try:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                await _decode(state, pictures, images)
        except TimeoutError:
            raise DeadlineError("The deadline passed while the image was decoded. Allow more time.") from None
        shapes = [
            seen_size_hw(i.shape[0], i.shape[1], deployment.segmenter.preprocessing, state.settings.limits)
            for i in images
        ]
        if len(images) == 1:
            submitted = 1
            one = deployment.batcher.submit(
                Job(images[0], confidence), shape=(shapes[0], confidence), deadline=deadline
            )
            return Answered(deployment, (images[0],), (await one,))
        tasks = []
        async with _Together() as group:
            for image, shape in zip(images, shapes, strict=True):
                submitted += 1
                job = Job(image, confidence)
                tasks.append(group.start(deployment.batcher.submit(job, shape=(shape, confidence), deadline=deadline)))
        return Answered(deployment, tuple(images), tuple(task.result() for task in tasks))
    finally:
        deployment.batcher.release(len(pictures) - submitted)
        for picture, image in zip(pictures, images, strict=False):
            if isinstance(picture, bytes):
                state.pixels.give_back(image.shape[0] * image.shape[1])


async def _decode(state: ServerState, pictures: Sequence[Picture], images: list[Array]) -> None:
    """Append the images of ``pictures``; what is in ``images`` took from the budget of pixels."""
    loop, limits = asyncio.get_running_loop(), state.settings.limits
    for number, picture in enumerate(pictures):
        if isinstance(picture, bytes):
            name = "The image" if len(pictures) == 1 else f"Image {number}"
            if not picture:
                raise InputError(f"{name} is empty (0 bytes). Send the bytes of a JPEG or PNG file.")
            decoding = loop.run_in_executor(
                state.decoders, partial(decode_upload, picture, limits, state.pixels, name=name)
            )
            try:
                images.append(await asyncio.shield(decoding))
            except asyncio.CancelledError:
                decoding.add_done_callback(lambda done: _give_back(state, done))
                raise
        else:
            check_pixels(picture.shape[0], picture.shape[1], limits)
            images.append(picture)


def _give_back(state: ServerState, decoding: asyncio.Future[Array]) -> None:
    if not decoding.cancelled() and decoding.exception() is None:
        image = decoding.result()
        state.pixels.give_back(image.shape[0] * image.shape[1])


class _Together:
    """Tasks of one request: the first failure cancels the others and is raised as it is."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def __aenter__(self) -> _Together:
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; cancel it when the client leaves.

    Raises:
        ClientGoneError: it left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("The client left before its answer.")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
