"""What the routes share: one :class:`ServerState` per application, reached by :func:`state_of`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from fastapi import Request, params

from cilseg.registry import Registry, Version
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.server.access import authorise
from cilseg_serve.server.deployment import Deployment
from cilseg_serve.server.drift_watch import DriftWatch
from cilseg_serve.server.gateway import Traffic
from cilseg_serve.server.metrics import Metrics
from cilseg_serve.server.pool import ModelPool
from cilseg_serve.server.settings import ServerSettings
from cilseg_serve.server.update_jobs import JobFolder, iter_states
from cilseg_serve.server.update_runner import UpdateRunner
from cilseg_serve.server.uploads import PixelBudget
from cilseg_serve.server.watched_folder import WatchedFolder

DECODERS = 2
_logger = logging.getLogger(__name__)


@dataclass
class ServerState:
    """The moving parts of one server."""

    settings: ServerSettings
    registry: Registry
    traffic: Traffic = field(default_factory=Traffic)
    metrics: Metrics = field(default_factory=Metrics)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pixels = PixelBudget(self.settings.limits.decoded_pixels)
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self.pool = ModelPool(self.registry, self.settings, make=self.deploy, on_retired=self._on_retired)
        self.state_dir = Path(self.settings.state_dir or self.registry.root / "serve").absolute()
        self.tags_dir = self.state_dir / "tags"
        self.jobs = JobFolder(self.state_dir / "updates")
        self.listings: dict[Path, tuple[float, list[str]]] = {}
        """Images below a root, and when they were listed."""

    def deploy(self, version: Version, segmenter: Segmenter) -> Deployment:
        """Return a deployment whose runs and answers are observed."""
        return Deployment(
            version,
            segmenter,
            self.settings,
            drift=DriftWatch(self.registry, version),
            observe=self._observe,
            on_run=self._on_run,
        )

    def _observe(
        self, deployment: Deployment, images: Sequence[npt.NDArray[np.uint8]], results: Sequence[Segmentation]
    ) -> None:
        deployment.drift.see(images, results)
        self.metrics.observe_masks(deployment.model, str(deployment.number), results)

    def _on_retired(self, deployment: Deployment) -> None:
        self.metrics.forget(deployment.model, str(deployment.number))

    def _on_run(self, deployment: Deployment, size: int, run_s: float) -> None:
        labels = (deployment.model, str(deployment.number))
        self.metrics.run_seconds.labels(*labels).observe(run_s)
        self.metrics.batch_size.labels(*labels).observe(size)
        self.metrics.images.labels(*labels).inc(size)

    def refresh_metrics(self) -> None:
        """Set the gauges that are read from what there is now."""
        metrics = self.metrics
        metrics.in_flight.set(self.traffic.in_flight)
        metrics.model_info.clear()
        for name, count in iter_states(self.jobs.all()):
            metrics.updates.labels(name).set(count)
        for served in self.pool.models.values():
            metrics.follow_failed.labels(served.name).set(served.fault is not None)
            for number, deployment in served.loaded.items():
                is_default = str(number == served.default).lower()
                metrics.model_info.labels(served.name, str(number), deployment.version.digest, is_default).set(1)
                metrics.queue_length.labels(served.name, str(number)).set(deployment.batcher.waiting)

    def spawn(self, work: Awaitable[None]) -> None:
        """Run ``work`` beside the requests until the server stops."""

        async def run() -> None:
            try:
                await work
            except Exception:
                _logger.exception("Something that runs beside the requests ended")

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def start(self) -> None:
        """Load the models and follow their aliases.

        Raises:
            CilsegError: a model cannot be served.
        """
        await self.pool.start()
        self.spawn(self.pool.follow())
        runner = UpdateRunner(
            self.jobs,
            self.registry,
            command=self.settings.update_command,
            registry_address=self._registry_address(),
            on_done=self.pool.poke,
        )
        self.spawn(runner.run())
        if self.settings.watch_dir is not None:
            self.spawn(WatchedFolder(self.settings.watch_dir, self.jobs, self.settings.image_roots).run())

    def _registry_address(self) -> str | None:
        """Return the registry as a child process needs it; None where the environment says it already."""
        if self.registry.address.folder is not None:
            return str(self.registry.address.folder)
        return None if self.settings.registry is None else str(self.settings.registry)

    async def stop(self) -> None:
        """Stop what runs beside the requests, answer what is in flight, release the lease."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pool.close()
        self.decoders.shutdown(wait=False)


def state_of(request: Request) -> ServerState:
    """Return the state of the application that answers ``request``."""
    return cast(ServerState, request.app.state.server)


def needs(role: str) -> params.Depends:
    """Return the dependency of routes that need a token with ``role``."""

    async def check(request: Request) -> None:
        authorise(request.headers.get("authorization"), role, state_of(request).settings.tokens)

    return params.Depends(check)
