"""Updates as folders: what was asked, how far it is, and what came of it. The folder is the queue.

``updates/<id>/``: ``job.json`` (written atomically), ``tags.json``, ``images/`` (uploads), ``log.txt`` (what the
training wrote), ``result.json`` (its answer), ``cancel`` (somebody asked to stop it). Ids sort by time.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cilseg.bundle import write_file_atomically
from cilseg.errors import ConflictError, NotFoundError

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
FINISHED = ("done", "failed", "cancelled")
JOB, TAGS, LOG, RESULT, CANCEL, IMAGES = "job.json", "tags.json", "log.txt", "result.json", "cancel", "images"
_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9]{6}-[0-9a-f]{6}")
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Options:
    """What an update may be asked for beside its tags; None leaves it to the parent version."""

    model: str | None = None
    parent: str | None = None
    method: str | None = None
    seed: int | None = None
    untagged: str | None = None
    on_regression: str | None = None


@dataclass(frozen=True)
class Job:
    """One update."""

    id: str
    created_at: str
    image_root: str
    images: int
    options: Options = field(default_factory=Options)
    source: dict[str, str] = field(default_factory=dict)
    """Where it came from: ``{"kind": "request"}``, or a file of the watched folder with its hash."""
    state: State = "queued"
    parent: str | None = None
    """The version that it starts from, once it ran."""
    attempts: int = 0
    pid: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    exit_code: int | None = None
    candidate: str | None = None
    verdict: str | None = None
    headline: str | None = None
    error: str | None = None


class JobFolder:
    """All updates of one state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new_id(self) -> str:
        """Return an id that sorts after all earlier ones."""
        return f"{datetime.now(UTC):%Y%m%dT%H%M%S-%f}-{secrets.token_hex(3)}"

    def path(self, job_id: str) -> Path:
        """Return the folder of an update.

        Raises:
            NotFoundError: there is none of that id.
        """
        folder = self.root / job_id
        if not _ID.fullmatch(job_id) or not (folder / JOB).is_file():
            raise NotFoundError(f"There is no update {job_id[:60]!r}. See GET /v1/updates.")
        return folder

    def prepare(self, job_id: str) -> Path:
        """Make the folder of an update that is still being received; it is not queued yet."""
        folder = self.root / job_id
        folder.mkdir(parents=True)
        return folder

    def read(self, job_id: str) -> Job:
        """Return an update.

        Raises:
            NotFoundError: there is none of that id.
        """
        return _job(json.loads((self.path(job_id) / JOB).read_text(encoding="utf-8")))

    def write(self, job: Job) -> Job:
        """Record an update."""
        data = (json.dumps(asdict(job), indent=1, ensure_ascii=False) + "\n").encode()
        write_file_atomically(self.root / job.id / JOB, data)
        return job

    def all(self) -> list[Job]:
        """Return every update, oldest first."""
        found = []
        for path in sorted(self.root.glob(f"*/{JOB}")) if self.root.is_dir() else ():
            try:
                found.append(_job(json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def change(self, job: Job, **fields: Any) -> Job:
        """Record ``job`` with other fields."""
        return self.write(replace(job, **fields))

    def cancel(self, job_id: str) -> Job:
        """Ask that an update stops; one that waits is cancelled at once.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: it is over.
        """
        job = self.read(job_id)
        if job.state in FINISHED:
            raise ConflictError(f"Update {job_id} is {job.state} already.")
        if job.state == "queued":
            return self.change(job, state="cancelled", finished_at=now())
        (self.root / job_id / CANCEL).touch()
        return job

    def resume(self, job_id: str) -> Job:
        """Queue an update again that failed or was cancelled; its training goes on from its last checkpoint.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: it waits, runs, or succeeded.
        """
        job = self.read(job_id)
        if job.state not in ("failed", "cancelled"):
            raise ConflictError(f"Update {job_id} is {job.state}; only failed and cancelled ones are resumed.")
        (self.root / job_id / CANCEL).unlink(missing_ok=True)
        return self.change(job, state="queued", finished_at=None, exit_code=None, error=None)

    def log(self, job_id: str, offset: int) -> tuple[bytes, int]:
        """Return at most 64 KiB of the log from ``offset`` on, and where it goes on.

        Raises:
            NotFoundError: there is none of that id.
        """
        path = self.path(job_id) / LOG
        if not path.is_file():
            return b"", 0
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(_TAIL_BYTES)
        return data, offset + len(data)

    def progress(self, job: Job, registry_root: Path) -> dict[str, Any] | None:
        """Return the last line of the training log that this update writes; None before training."""
        if job.started_at is None:
            return None
        since = datetime.fromisoformat(job.started_at).timestamp()
        logs = [p for p in (registry_root / "runs").glob("update-*/log.jsonl") if p.stat().st_mtime >= since]
        newest = max(logs, key=lambda p: p.stat().st_mtime, default=None)
        return None if newest is None else _last_line(newest)


def now() -> str:
    """Return the time as it is recorded."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def last_words(log: Path) -> str:
    """Return what a failed command said: its ``error:`` message, else its last lines."""
    lines = [line for line in _tail(log).splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[starts[-1] :] if starts else lines[-3:])[:4000]


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")


def _last_line(path: Path) -> dict[str, Any] | None:
    for line in reversed(_tail(path).splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _job(fields: dict[str, Any]) -> Job:
    return Job(**{**fields, "options": Options(**fields["options"])})


def iter_states(jobs: list[Job]) -> Iterator[tuple[State, int]]:
    """Yield each state with the number of updates in it."""
    for state in STATES:
        yield state, sum(job.state == state for job in jobs)
