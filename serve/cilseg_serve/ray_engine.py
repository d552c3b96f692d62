"""The same batch run on a Ray cluster, through Ray Data: one model per worker, rows streamed back to the caller.

Workers read the inputs and write the output themselves, so both must be reachable from every machine under the same
names: a shared folder, or an object store for the inputs. Only the caller writes the journal and the summary.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cilseg.errors import CilsegError, InputError, MissingDependencyError
from cilseg_serve.outputs import OutputOptions
from cilseg_serve.pipeline import Job, Row
from cilseg_serve.sources import Item


@dataclass(frozen=True)
class RayEngine:
    """Runs a job on the cluster of ``RAY_ADDRESS``, or on one that Ray starts on this machine.

    Attributes:
        registry: where workers look the model up; ``None``: as in :class:`~cilseg_serve.Segmenter`.
        workers: models that run at one time, each on one core and with one thread.
        allow_unverified: as in :class:`~cilseg_serve.Segmenter`.
        backend, precision: likewise.
    """

    registry: str | Path | None = None
    workers: int = 2
    allow_unverified: bool = False
    backend: str = "auto"
    precision: str = "fp32"

    def run(self, job: Job, items: Sequence[Item]) -> Iterator[Row]:
        """Do all items and give their rows as they are done, in any order.

        Raises:
            InputError: no workers, or compressed archives among the items.
            MissingDependencyError: Ray is not installed.
            CilsegError: Ray failed; what was done stays and can be resumed.
        """
        if self.workers < 1:
            raise InputError(f"A cluster has at least 1 worker, got {self.workers}.")
        packed = sorted({str(item.archive) for item in items if item.in_order})
        if packed:
            raise InputError(
                f"{', '.join(packed)}: a compressed archive is read from its beginning, which workers cannot share. "
                "Unpack it, or keep it as plain .tar."
            )
        if not items:
            return
        ray = _started()
        # The result must not carry types of ours through Arrow: a row is one JSON text.
        rows = [{"item": json.dumps(_portable(item))} for item in items]
        try:
            data = ray.data.from_items(rows, override_num_blocks=min(len(rows), 4 * self.workers))
            pool = ray.data.ActorPoolStrategy(size=self.workers)
            done = data.map(_Worker, fn_constructor_args=(self._plan(job),), compute=pool, num_cpus=1)
            for answer in done.iter_rows():
                yield json.loads(answer["row"])
        except ray.exceptions.RayError as exc:
            raise CilsegError(f"Ray failed ({_cause(exc)}). Repeat the command with --resume to go on.") from exc

    def _plan(self, job: Job) -> dict[str, Any]:
        return {
            "model": _absolute(job.segmenter.name),
            "registry": self._registry(),
            "allow_unverified": self.allow_unverified,
            "backend": self.backend,
            "precision": self.precision,
            "digest": job.segmenter.digest,
            "target": str(job.target.absolute()),
            "options": asdict(job.options),
            "tiles": None if job.window is None else (job.window.tile_px, job.window.overlap_px),
        }

    def _registry(self) -> str:
        """Where the registry is, in words that mean the same in another folder."""
        chosen = str(self.registry or os.environ.get("CILSEG_REGISTRY") or "cilseg-registry")
        return chosen if "://" in chosen else str(Path(chosen).absolute())


class _Worker:
    """Holds one model; Ray makes it once per worker."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from cilseg_serve.segmenter import Segmenter
        from cilseg_serve.sliding_window import SlidingWindow

        segmenter = Segmenter(
            plan["model"],
            registry=plan["registry"],
            threads=1,
            allow_unverified=plan["allow_unverified"],
            backend=plan["backend"],
            precision=plan["precision"],
        )
        if segmenter.digest != plan["digest"]:
            raise CilsegError(f"{plan['model']} is {segmenter.digest} on a worker, {plan['digest']} on the caller.")
        tiles = plan["tiles"]
        window = None if tiles is None else SlidingWindow(segmenter, tile_px=tiles[0], overlap_px=tiles[1])
        options = OutputOptions(tuple(plan["options"]["formats"]), overlays=plan["options"]["overlays"])
        self._job = Job(segmenter, Path(plan["target"]), options, window)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        portable = json.loads(row["item"])
        shown = portable.pop("shown")
        item = Item(**portable)
        done = {**self._job.do(item), "file": shown}
        if "failure" in done:
            done["failure"] = done["failure"].replace(item.file, shown)
        return {"row": json.dumps(done)}


def _portable(item: Item) -> dict[str, Any]:
    """Return an item with absolute paths, beside the name that it has for the caller."""
    values = {**asdict(item), "shown": item.file}
    if item.archive is not None:
        values["archive"] = str(Path(item.archive).absolute())
    elif "://" not in item.file:
        values["file"] = str(Path(item.file).absolute())
    return values


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _started() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise MissingDependencyError(f"--engine ray needs Ray ({exc}): pip install 'cilseg[ray]'.") from exc
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(**own, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray


def _cause(error: BaseException) -> str:
    lines = [line for line in str(getattr(error, "cause", None) or error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
