"""The inside of a batch run on one machine: decoding, inference and writing overlap, in bounded memory.

Threads decode ahead and write behind; the calling thread runs the model. Never more than
``2 * decoders + batch_size + 2 * writers`` images are held at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cilseg.errors import CilsegError, InputError
from cilseg_serve.outputs import MASKS, OutputOptions, rounded, write_outputs
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.sliding_window import SlidingWindow
from cilseg_serve.sources import ArchiveReader, Item, read_item

Row: TypeAlias = dict[str, Any]
Image8: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What is done with every image: the model, how large images are tiled, and what is written where.

    ``window`` is ``None`` where images are run in one piece.
    """

    segmenter: Segmenter
    target: Path
    options: OutputOptions
    window: SlidingWindow | None = None

    def decode(self, item: Item, data: bytes | None = None) -> Image8 | None:
        """Return the image, or ``None`` where it is streamed from file to file."""
        return None if self.options.streamed else read_item(item, data)

    def segment(self, items: Sequence[Item], images: Sequence[Image8 | None]) -> list[Segmentation | Row]:
        """Run the model; a streamed image gives its finished row."""
        if self.options.streamed:
            return [self._stream(item) for item in items]
        whole = [image for image in images if image is not None]
        if self.window is not None:
            return [self.window.segment(image) for image in whole]
        return list(self.segmenter.segment_batch(whole))

    def write(self, item: Item, image: Image8 | None, result: Segmentation | Row) -> Row:
        """Write the files of one image and return its row."""
        if isinstance(result, dict):
            return {**_head(item), **result}
        assert image is not None
        classes = self.segmenter.class_set
        row = write_outputs(self.target, item.name, image, result, class_set=classes, options=self.options)
        return {**_head(item), **row}

    def do(self, item: Item) -> Row:
        """Do one image from beginning to end; a failure is a row too.

        Raises:
            OSError: the output cannot be written.
        """
        try:
            image = self.decode(item)
            [result] = self.segment([item], [image])
        except CilsegError as exc:
            return failure(item, exc)
        return self.write(item, image, result)

    def _stream(self, item: Item) -> Row:
        from cilseg_serve.geotiff import segment_geotiff

        if item.archive is not None:
            raise InputError(f"{item.file}: GeoTIFF is not read from inside an archive. Unpack it.")
        assert self.window is not None
        mask = f"{MASKS}/{item.name}.tif"
        path = self.target / mask
        path.parent.mkdir(parents=True, exist_ok=True)
        done = segment_geotiff(self.window, item.file, path)
        return {
            "mask": mask,
            "overlay": None,
            "width_px": done.width_px,
            "height_px": done.height_px,
            "crs": done.crs,
            "coverage": rounded(done.coverage),
        }


def failure(item: Item, error: CilsegError) -> Row:
    """Return the row of an image that was skipped."""
    return {**_head(item), "failure": str(error)}


def _head(item: Item) -> Row:
    return {"name": item.name, "file": item.file}


@dataclass(frozen=True)
class LocalEngine:
    """Runs a job in this process.

    Attributes:
        batch_size: images given to the model at once; those of one size share a run. More than 1 pays on a GPU.
        decoders: threads that read and decode.
        writers: threads that encode and write.
    """

    batch_size: int = 1
    decoders: int = 2
    writers: int = 2

    def run(self, job: Job, items: Sequence[Item]) -> Iterator[Row]:
        """Do all items and give their rows, in order, when their files are written.

        Raises:
            InputError: a count below 1.
            OSError: the output cannot be written; what was begun is finished.
        """
        if min(self.batch_size, self.decoders, self.writers) < 1:
            raise InputError(f"Batch size and threads are at least 1, got {self}.")
        fetch, decode, write = (
            ThreadPoolExecutor(count, thread_name_prefix=f"cilseg-{what}")
            for what, count in (("fetch", 1), ("decode", self.decoders), ("write", self.writers))
        )
        try:
            decoding = self._decoded(job, items, fetch, decode)
            writing: deque[Future[Row]] = deque()
            while batch := [pair for _, pair in zip(range(self.batch_size), decoding, strict=False)]:
                for item, image, result in _segmented(job, batch):
                    if isinstance(result, CilsegError):
                        done: Future[Row] = Future()
                        done.set_result(failure(item, result))
                    else:
                        done = write.submit(job.write, item, image, result)
                    writing.append(done)
                while len(writing) > 2 * self.writers or (writing and writing[0].done()):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()
        finally:
            for pool in (fetch, decode, write):
                pool.shutdown(cancel_futures=True)

    def _decoded(
        self, job: Job, items: Sequence[Item], fetch: ThreadPoolExecutor, decode: ThreadPoolExecutor
    ) -> Iterator[tuple[Item, Image8 | CilsegError | None]]:
        """Give items with their images in order, a few decoded ahead."""
        archives = ArchiveReader()
        waiting = iter(items)
        ahead: deque[tuple[Item, Future[Image8 | None]]] = deque()
        while True:
            while len(ahead) < 2 * self.decoders and (item := next(waiting, None)) is not None:
                data = fetch.submit(archives.read, item) if item.in_order and not job.options.streamed else None
                ahead.append((item, decode.submit(_decode, job, item, data)))
            if not ahead:
                return
            item, image = ahead.popleft()
            try:
                yield item, image.result()
            except CilsegError as exc:
                yield item, exc


def _decode(job: Job, item: Item, data: Future[bytes] | None) -> Image8 | None:
    return job.decode(item, None if data is None else data.result())


def _segmented(
    job: Job, batch: Sequence[tuple[Item, Image8 | CilsegError | None]]
) -> Iterator[tuple[Item, Image8 | None, Segmentation | Row | CilsegError]]:
    """Run the model on what was decoded; where a batch fails its images are tried one by one."""
    good = [(item, image) for item, image in batch if not isinstance(image, CilsegError)]
    results: dict[str, Segmentation | Row | CilsegError] = {
        item.name: image for item, image in batch if isinstance(image, CilsegError)
    }
    try:
        answers = job.segment([item for item, _ in good], [image for _, image in good]) if good else []
        results |= {item.name: answer for (item, _), answer in zip(good, answers, strict=True)}
    except CilsegError as whole:
        for item, image in good:
            try:
                results[item.name] = whole if len(good) == 1 else job.segment([item], [image])[0]
            except CilsegError as exc:
                results[item.name] = exc
    for item, decoded in batch:
        yield item, None if isinstance(decoded, CilsegError) else decoded, results[item.name]
