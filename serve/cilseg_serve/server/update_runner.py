"""Runs the queued updates, one at a time, each as ``cilseg update`` in a process of its own.

The state is in the folders, so nothing is lost with the server. The training holds a lock on its folder: a server that
comes back after a crash finds out whether it still runs, stops it, and queues it again with ``--resume``.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cilseg.errors import CilsegError
from cilseg.registry import Registry
from cilseg_serve.server.update_jobs import (
    CANCEL,
    LOG,
    RESULT,
    TAGS,
    Job,
    JobFolder,
    last_words,
    now,
)

_logger = logging.getLogger(__name__)
_POLL_S = 0.25
_KILL_AFTER_S = 20.0
_MAX_ATTEMPTS = 5
_VERDICT_CODES = (0, 3)
_INTERRUPTED = 130


class UpdateRunner:
    """Works off the queue of one state folder until cancelled; a second server on the folder waits its turn.

    Args:
        command: what to run, before the options of ``cilseg update``.
        registry_address: the registry as the server was given it, passed on in the environment.
    """

    def __init__(
        self,
        jobs: JobFolder,
        registry: Registry,
        *,
        command: Sequence[str],
        registry_address: str | None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.jobs, self._registry, self._command = jobs, registry, tuple(command)
        self._address, self._on_done = registry_address, on_done

    async def run(self) -> None:
        """Work until cancelled; a training that runs then is interrupted and goes on with the next server."""
        try:
            self.jobs.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _logger.warning("No updates here: %s cannot be made (%s)", self.jobs.root, error)
            return
        with (self.jobs.root / ".lock").open("a") as own:
            while not _lock(own.fileno()):
                await asyncio.sleep(_POLL_S * 4)
            await self._recover()
            while True:
                waiting = next((job for job in await asyncio.to_thread(self.jobs.all) if job.state == "queued"), None)
                if waiting is None:
                    await asyncio.sleep(_POLL_S)
                    continue
                try:
                    await self._work(waiting)
                except Exception as error:
                    _logger.exception("update %s cannot be run", waiting.id)
                    known = isinstance(error, OSError | CilsegError)
                    text = str(error) if known else f"{type(error).__name__} in the server; its log says more."
                    self.jobs.change(waiting, state="failed", finished_at=now(), error=text)
                self._on_done()

    async def _recover(self) -> None:
        """Queue again what a server that crashed left running."""
        for job in self.jobs.all():
            if job.state != "running":
                continue
            with (self.jobs.root / job.id / ".running").open("a") as lock:
                if not _lock(lock.fileno()) and job.pid is not None:
                    _logger.warning("update %s outlived its server; it is stopped and resumed", job.id)
                    await _stop(job.pid, partial(_lock, lock.fileno()))
            cancelled = (self.jobs.root / job.id / CANCEL).exists()
            self.jobs.change(job, state="cancelled" if cancelled else "queued", pid=None)

    async def _work(self, job: Job) -> None:
        folder = self.jobs.root / job.id
        if job.attempts >= _MAX_ATTEMPTS:
            self.jobs.change(job, state="failed", finished_at=now(), error=f"Given up after {job.attempts} attempts.")
            return
        parent = job.parent
        if parent is None:
            ref = job.options.parent or job.options.model
            parent = (await asyncio.to_thread(self._registry.resolve, ref)).ref
        job = self.jobs.change(
            job, state="running", parent=parent, attempts=job.attempts + 1, started_at=now(), finished_at=None
        )
        with (
            (folder / ".running").open("a") as lock,
            (folder / LOG).open("ab") as log,
            (folder / RESULT).open("wb") as result,
        ):
            _lock(lock.fileno())
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *_options(job, folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                cwd=folder,
                env=self._environment(),
                pass_fds=(lock.fileno(),),
                start_new_session=True,
                preexec_fn=_interruptible,
            )
        job = self.jobs.change(job, pid=process.pid)
        _logger.info("update %s started", job.id, extra={"update": job.id, "parent": parent, "attempt": job.attempts})
        try:
            while process.returncode is None:
                if (folder / CANCEL).exists():
                    await _stop(process.pid, lambda: process.returncode is not None)
                    break
                try:
                    async with asyncio.timeout(_POLL_S):
                        await process.wait()
                except TimeoutError:
                    continue
        except asyncio.CancelledError:
            await _stop(process.pid, lambda: process.returncode is not None)
            self._finish(job, await process.wait(), stopping=True)
            raise
        self._finish(job, await process.wait(), stopping=False)

    def _finish(self, job: Job, code: int, *, stopping: bool) -> None:
        folder = self.jobs.root / job.id
        cancelled = (folder / CANCEL).exists()
        answer = _answer(folder / RESULT) if code in _VERDICT_CODES else None
        if answer is not None:
            job = self.jobs.change(
                job,
                state="done",
                candidate=answer.get("candidate"),
                verdict=answer.get("verdict"),
                headline=(answer.get("gate") or {}).get("headline"),
                exit_code=code,
                pid=None,
                finished_at=now(),
            )
        elif cancelled:
            job = self.jobs.change(job, state="cancelled", exit_code=code, pid=None, finished_at=now())
        elif stopping:
            job = self.jobs.change(job, state="queued", exit_code=code, pid=None)
        else:
            error = last_words(folder / LOG) or f"The training ended with {code} and said nothing."
            job = self.jobs.change(job, state="failed", exit_code=code, pid=None, finished_at=now(), error=error)
        _logger.info("update %s: %s", job.id, job.state, extra={"update": job.id, "verdict": job.verdict})

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "CILSEG_TOKENS"}
        kept["PYTHONUNBUFFERED"] = "1"
        if self._address is not None:
            kept["CILSEG_REGISTRY"] = self._address
        return kept


def _options(job: Job, folder: Path) -> list[str]:
    options = ["--tags", str(folder / TAGS), "--image-root", job.image_root, "--from", job.parent or "", "--json"]
    asked = job.options
    for flag, value in (
        ("--method", asked.method),
        ("--seed", asked.seed),
        ("--untagged", asked.untagged),
        ("--on-regression", asked.on_regression),
    ):
        options += [] if value is None else [flag, str(value)]
    return [*options, *(["--resume"] if job.attempts > 1 else [])]


def _answer(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _interruptible() -> None:
    """Let the training hear SIGINT, which a server that a shell put into the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def _stop(pid: int, is_over: Callable[[], bool]) -> None:
    """Interrupt the process group of ``pid``; kill it when it does not end."""
    for number, wait_s in ((signal.SIGINT, _KILL_AFTER_S), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        for _ in range(int(wait_s / 0.1)):
            if is_over():
                return
            await asyncio.sleep(0.1)


def _lock(descriptor: int) -> bool:
    """Take the lock on an open file, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
