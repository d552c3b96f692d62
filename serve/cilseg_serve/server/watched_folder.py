"""A folder in which every new tag list becomes an update, once it stopped changing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from cilseg.errors import CilsegError
from cilseg_serve.server.roots import Roots
from cilseg_serve.server.tag_documents import check_paths, image_root_of, parse_document
from cilseg_serve.server.update_jobs import TAGS, Job, JobFolder, Options, now

_logger = logging.getLogger(__name__)
_POLL_S = 1.0
_MAX_BYTES = 256 * 2**20


class WatchedFolder:
    """Looks for ``*.json`` in ``folder``. A list counts as seen by its name and content, also after a restart."""

    def __init__(self, folder: Path, jobs: JobFolder, roots: Roots) -> None:
        self._folder, self._jobs = folder.resolve(), jobs
        self._roots: Roots = (*roots, (folder.name, self._folder))
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._known: dict[Path, tuple[int, int]] = {}

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except OSError as error:
                _logger.warning("The watched folder %s cannot be read: %s", self._folder, error)
            await asyncio.sleep(_POLL_S)

    def look(self) -> list[Job]:
        """Queue what is new and did not change since the last look; return it."""
        made = []
        for path in sorted(self._folder.glob("*.json")):
            stat = path.stat()
            mark = (stat.st_size, stat.st_mtime_ns)
            settled, self._sizes[path] = self._sizes.get(path) == mark, mark
            if not settled or self._known.get(path) == mark or stat.st_size > _MAX_BYTES:
                continue
            self._known[path] = mark
            data = path.read_bytes()
            source = {"kind": "folder", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
            if any(job.source == source for job in self._jobs.all()):
                continue
            made.append(self._queue(data, source))
        return made

    def _queue(self, data: bytes, source: dict[str, str]) -> Job:
        job_id = self._jobs.new_id()
        folder = self._jobs.prepare(job_id)
        (folder / TAGS).write_bytes(data)
        try:
            document = parse_document(data)
            named = document.get("image_root")
            beside = self._folder / named if isinstance(named, str) and not Path(named).is_absolute() else None
            if beside is not None and beside.is_dir():
                document["image_root"] = str(beside)
            root = image_root_of(document, self._roots, default=self._folder)
            job = Job(job_id, now(), str(root), check_paths(document, root), Options(), source)
        except CilsegError as error:
            _logger.error("%s in the watched folder cannot be used: %s", source["file"], error)
            job = Job(job_id, now(), "", 0, Options(), source, state="failed", finished_at=now(), error=str(error))
        return self._jobs.write(job)
