"""One version in memory: its segmenter, the queue before it, and what is observed of its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.registry import Registry, Version
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.server.batching import Batcher
from cilseg_serve.server.drift_watch import DriftWatch
from cilseg_serve.server.settings import CPU_BATCH_PIXELS, CPU_WORKERS, GPU_BATCH_PIXELS, Batching, ServerSettings

Array = npt.NDArray[np.uint8]
Observe = Callable[["Deployment", Sequence[Array], Sequence[Segmentation]], None]
"""Called in the thread of a run with images and answers."""
_SURE_EVERY_S = 0.5


@dataclass(frozen=True)
class Job:
    """One image to segment, and whether its confidence is wanted."""

    image: Array
    confidence: bool


class Deployment:
    """A loaded version. ``use`` counts who works with it, so that it is only closed when nobody does."""

    def __init__(
        self,
        version: Version,
        segmenter: Segmenter,
        settings: ServerSettings,
        *,
        drift: DriftWatch,
        observe: Observe,
        on_run: Callable[[Deployment, int, float], None],
    ) -> None:
        self.version, self.segmenter = version, segmenter
        self.drift = drift
        self.loaded_at = time.time()
        self._observe, self._users = observe, 0
        self._next_sure = 0.0
        self.batcher: Batcher[Job, Segmentation] = Batcher(
            self._run,
            name=version.ref,
            settings=replace(settings.batching, workers=workers_of(segmenter, settings.batching)),
            largest=partial(images_per_run, settings=settings.batching, device=device_of(segmenter)),
            on_run=lambda size, run_s: on_run(self, size, run_s),
        )

    @property
    def model(self) -> str:
        return self.version.name

    @property
    def number(self) -> int:
        return self.version.number

    @property
    def users(self) -> int:
        """Requests that work with it now."""
        return self._users

    @contextmanager
    def use(self) -> Iterator[Deployment]:
        """Keep it open for one request."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1

    async def close(self) -> None:
        """Wait until nobody uses it, then let it go."""
        while self._users:
            await asyncio.sleep(0.02)
        await self.batcher.close()

    def _run(self, jobs: Sequence[Job]) -> list[Segmentation]:
        # Confidence costs time; without a client who wants it, it is looked at now and then for drift.
        wanted = jobs[0].confidence
        due = not wanted and self.segmenter.has_confidence and time.monotonic() >= self._next_sure
        if due:
            self._next_sure = time.monotonic() + _SURE_EVERY_S
        images = [job.image for job in jobs]
        results = self.segmenter.segment_batch(images, confidence=wanted or due)
        self._observe(self, images, results)
        return results


def images_per_run(shape: Any, *, settings: Batching, device: str) -> int:
    """Return how many images of ``shape``, ``((h, w), confidence)``, share a run on ``device``."""
    (height, width), _ = shape
    pixels = settings.batch_pixels or (CPU_BATCH_PIXELS if device == "cpu" else GPU_BATCH_PIXELS)
    return max(1, min(settings.max_batch, int(pixels // (height * width))))


def workers_of(segmenter: Segmenter, settings: Batching) -> int:
    """Return how many runs of a segmenter go on at one time."""
    return settings.workers or (CPU_WORKERS if device_of(segmenter) == "cpu" else 1)


def device_of(segmenter: Segmenter) -> str:
    """Return where a segmenter runs: ``cpu``, or the name of a GPU."""
    return segmenter.backend.device


def load_segmenter(registry: Registry, version: Version, settings: ServerSettings) -> Segmenter:
    """Load a version and run it once, so that the first request is as fast as the others.

    Raises:
        CilsegError: see :class:`cilseg_serve.Segmenter`.
    """
    segmenter = Segmenter(
        version.ref,
        registry=registry,
        threads=settings.threads,
        allow_unverified=settings.allow_unverified,
        backend=settings.backend,
        precision=settings.precision,
    )
    segmenter.segment(np.zeros((64, 64, 3), np.uint8), confidence=segmenter.has_confidence)
    return segmenter
