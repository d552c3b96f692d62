"""Batch inference: images of folders, archives, lists and object stores into a folder of masks and one summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cilseg import __version__
from cilseg.bundle import write_file_atomically
from cilseg.errors import InputError
from cilseg_serve.coco import coco_document
from cilseg_serve.journal import Journal
from cilseg_serve.outputs import PARTS, OutputOptions, missing_files, remove_leftovers
from cilseg_serve.pipeline import Job, LocalEngine, Row
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.sliding_window import SlidingWindow
from cilseg_serve.sources import Item, find_items

SCHEMA = "cilseg.predictions/1"
OnProgress = Callable[[int, int, str], None]


class Engine(Protocol):
    """Whatever does a job's items: threads of this process, or a cluster."""

    def run(self, job: Job, items: Sequence[Item]) -> Iterator[Row]:
        """Give the row of every item, in any order, when its files are written."""
        ...


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1: every ``count``-th image."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise InputError(f"Shards are 1/N to N/N, got {self.index}/{self.count}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"2/4"``.

        Raises:
            InputError: another form, or out of range.
        """
        index, slash, count = text.partition("/")
        if not slash or not index.strip().isdecimal() or not count.strip().isdecimal():
            raise InputError(f"A shard is written i/n, such as 2/4, got {text!r}.")
        return cls(int(index), int(count))

    @property
    def suffix(self) -> str:
        """What file names of this shard end with; nothing where there is one shard."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


@dataclass(frozen=True)
class PredictedImage:
    """One image that was segmented; ``mask`` and ``overlay`` are relative to the output folder."""

    file: str
    mask: Path | None
    overlay: Path | None
    width_px: int
    height_px: int
    coverage: dict[str, float]


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict_paths` did: images in input order, and the failures with their reasons."""

    images: tuple[PredictedImage, ...]
    failures: tuple[tuple[str, str], ...]
    summary: dict[str, Any]


def predict_paths(
    segmenter: Segmenter,
    inputs: Sequence[str | Path],
    out_dir: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    overlays: bool = True,
    window: SlidingWindow | None = None,
    shard: Shard | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> Predictions:
    """Segment every image of ``inputs`` (files, folders, tar archives, CSV lists, fsspec URLs) into ``out_dir``.

    Writes ``masks/NAME.png`` (palette PNG of ids), ``overlays/NAME.jpg``, what else ``formats`` say, ``summary.json``
    (``complete`` is false until the end) and ``predictions.jsonl``, one line per image as it is done. Folders below a
    given one are kept, a name taken twice gets ``-2``, ``-3``. An image that cannot be read is listed under
    ``failures`` and the rest goes on.

    Args:
        formats: some of ``png``, ``rle``, ``polygons``, ``coco`` and ``geotiff`` (which needs ``window``).
        window: tiles large images; ``None`` runs each in one piece.
        shard: which part of the images; shards may share ``out_dir``, their summaries have their own names.
        resume: keep what an earlier, killed run with the same arguments has done; failures are tried again.
        engine: what does the work; ``None``: threads of this process.
        on_progress: called after each image with (done, total, file); what was done before counts as done.

    Raises:
        InputError: an input that does not exist, no image among the inputs, options that do not fit, ``out_dir`` is a
            file or holds masks that are not an earlier output of this function; nothing is written.
        OSError: the output cannot be written; finished images stay, none is half-written.
    """
    target = Path(out_dir)
    part = shard or Shard()
    options = OutputOptions(tuple(dict.fromkeys(formats)), overlays=overlays and "geotiff" not in formats)
    _check_options(options, window)
    _check_target(target)
    items = find_items(inputs, shut=[target / name for name in PARTS])[part.index - 1 :: part.count]
    target.mkdir(parents=True, exist_ok=True)
    for name in ("summary", "coco"):
        for leftover in target.glob(f".{name}{part.suffix}.json.*.tmp"):
            leftover.unlink(missing_ok=True)
    run = _Run(segmenter, target, part, items)
    job = Job(segmenter, target, options, window)
    head = _head(segmenter, options, window, part)
    with Journal(target / f"predictions{part.suffix}.jsonl", head, resume=resume) as journal:
        run.write_summary(journal.rows, complete=False)
        done = [item for item in items if _is_done(journal.rows.get(item.name), item, target)]
        finished = {item.name for item in done}
        todo = [item for item in items if item.name not in finished]
        remove_leftovers(target, {item.name for item in todo})
        for count, row in enumerate((engine or LocalEngine()).run(job, todo), start=len(done) + 1):
            journal.add(row)
            if on_progress is not None:
                on_progress(count, len(items), row["file"])
        if "coco" in options.formats:
            run.write_coco(journal.rows)
        summary = run.write_summary(journal.rows, complete=True)
        return run.predictions(journal.rows, summary)


def _check_options(options: OutputOptions, window: SlidingWindow | None) -> None:
    if options.streamed and len(options.formats) > 1:
        others = ", ".join(name for name in options.formats if name != "geotiff")
        raise InputError(
            f"The format geotiff is written alone, since the image is never whole; got {others} beside it."
        )
    if options.streamed and window is None:
        raise InputError("The format geotiff needs tiles: give their size (--tile 1024, window=SlidingWindow(...)).")


def _check_target(target: Path) -> None:
    """Refuse an output that is a file, or a folder whose masks somebody else made (ground truth, perhaps)."""
    if target.exists() and not target.is_dir():
        raise InputError(f"Output {target} is a file, expected a folder. Choose another name.")
    occupied = [part for part in PARTS if (target / part).exists()]
    if occupied and not any(_is_ours(path) for path in target.glob("summary*.json")):
        raise InputError(
            f"Output {target} already holds {' and '.join(occupied)}/ that cilseg predict did not write; they could be "
            "overwritten. Choose another folder."
        )


def _is_ours(summary: Path) -> bool:
    try:
        return bool(json.loads(summary.read_text(encoding="utf-8")).get("schema") == SCHEMA)
    except (OSError, ValueError, AttributeError):
        return False


def _is_done(row: Row | None, item: Item, target: Path) -> bool:
    return row is not None and row["file"] == item.file and "failure" not in row and not missing_files(target, row)


def _head(segmenter: Segmenter, options: OutputOptions, window: SlidingWindow | None, shard: Shard) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": {"name": segmenter.name, "digest": segmenter.digest},
        "formats": sorted(options.formats),
        "overlays": options.overlays,
        "tile_px": None if window is None else window.tile_px,
        "overlap_px": None if window is None else window.overlap_px,
        "shard": f"{shard.index}/{shard.count}",
    }


@dataclass(frozen=True)
class _Run:
    """Turns rows into the summary and its views."""

    segmenter: Segmenter
    target: Path
    shard: Shard
    items: Sequence[Item]

    def write_summary(self, rows: dict[str, Row], *, complete: bool) -> dict[str, Any]:
        ordered = self._ordered(rows) if complete else []
        summary = {
            "schema": SCHEMA,
            "complete": complete,
            "cilseg": __version__,
            "model": {"name": self.segmenter.name, "digest": self.segmenter.digest},
            "classes": self.segmenter.class_set.to_json(),
            **({} if self.shard.count == 1 else {"shard": f"{self.shard.index}/{self.shard.count}"}),
            "images": [_without(row, "name") for row in ordered if "failure" not in row],
            "failures": [{"file": r["file"], "reason": r["failure"]} for r in ordered if "failure" in r],
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_file_atomically(self.target / f"summary{self.shard.suffix}.json", text.encode())
        return summary

    def write_coco(self, rows: dict[str, Row]) -> None:
        good = [row for row in self._ordered(rows) if "failure" not in row]
        images = (
            (
                {"file_name": row["file"], "width": row["width_px"], "height": row["height_px"]},
                json.loads((self.target / row["rle"]).read_bytes())["segments"],
            )
            for row in good
        )
        info = {"description": f"masks by {self.segmenter.name}", "version": self.segmenter.digest or ""}
        document = coco_document(images, self.segmenter.class_set, info=info)
        text = json.dumps(document, ensure_ascii=False) + "\n"
        write_file_atomically(self.target / f"coco{self.shard.suffix}.json", text.encode())

    def predictions(self, rows: dict[str, Row], summary: dict[str, Any]) -> Predictions:
        ordered = self._ordered(rows)
        images = tuple(
            PredictedImage(
                file=row["file"],
                mask=None if row["mask"] is None else Path(row["mask"]),
                overlay=None if row["overlay"] is None else Path(row["overlay"]),
                width_px=row["width_px"],
                height_px=row["height_px"],
                coverage=row["coverage"],
            )
            for row in ordered
            if "failure" not in row
        )
        failures = tuple((row["file"], row["failure"]) for row in ordered if "failure" in row)
        return Predictions(images, failures, summary)

    def _ordered(self, rows: dict[str, Row]) -> list[Row]:
        return [rows[item.name] for item in self.items]


def _without(row: Row, key: str) -> Row:
    return {k: v for k, v in row.items() if k != key}
