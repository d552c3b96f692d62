"""``events.jsonl``: every event once, in order, one JSON object per line, so that the database can be rebuilt.

Callers hold the database's write lock while they append; an event is written here only after its commit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cilseg.errors import ArtifactError, FaultCollector
from cilseg.registry.files import sync_folder
from cilseg.registry.killpoints import point

EVENT_SCHEMA = "cilseg.event/1"
_BLOCK_BYTES = 1 << 16


def last_sequence(path: Path) -> int:
    """Return the sequence of the last whole line, 0 for a missing or empty log; a torn last line is not counted.

    Raises:
        ArtifactError: the last whole line is no event.
    """
    _, line = _tail(path)
    if not line:
        return 0
    try:
        return int(json.loads(line)["sequence"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: the last line is no event ({error}). Take the line out, or restore the file."
        ) from error


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` and fsync; a torn last line, left by a killed writer, is cut off first.

    Raises:
        OSError: the disk is full or the file cannot be written; whole lines already there stay.
    """
    text = lines(rows)
    end, _ = _tail(path)
    created = not path.exists()
    with path.open("ab") as handle:
        point("log-write")
        handle.truncate(end)
        handle.write(text)
        handle.flush()
        point("log-fsync")
        os.fsync(handle.fileno())
    if created:
        sync_folder(path.parent)


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return events as they stand in a log."""
    return "".join(
        json.dumps({"schema": EVENT_SCHEMA, **row}, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
    ).encode()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all events, checked to be numbered 1, 2, 3, ...; a torn last line is left out.

    Raises:
        ArtifactError: a line is no event or one is missing; every fault is named.
    """
    end, _ = _tail(path)
    return parse(path.read_bytes()[:end] if end else b"", place=str(path))


def parse(text: bytes, *, place: str) -> list[dict[str, Any]]:
    """Return the events of a log, as :func:`read_events`; ``place`` names it in messages."""
    rows: list[dict[str, Any]] = []
    faults = FaultCollector(place)
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            if row["schema"] != EVENT_SCHEMA or row["sequence"] != number:
                faults.add(f"line {number}: schema {row['schema']!r}, sequence {row['sequence']!r}, expected {number}")
            rows.append({key: value for key, value in row.items() if key != "schema"})
        except (ValueError, KeyError, TypeError) as error:
            faults.add(f"line {number}: no event ({error})")
    faults.raise_if_any("Restore the file from a backup.", error=ArtifactError)
    return rows


def _tail(path: Path) -> tuple[int, bytes]:
    """Return the offset behind the last newline, and the line before it."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return 0, b""
    with handle:
        start = handle.seek(0, os.SEEK_END)
        data = b""
        while start > 0:
            step = min(_BLOCK_BYTES, start)
            start = handle.seek(start - step)
            data = handle.read(step) + data
            end = data.rfind(b"\n")
            begin = data.rfind(b"\n", 0, end) if end > 0 else -1
            if end >= 0 and (begin >= 0 or start == 0):
                return start + end + 1, data[begin + 1 : end]
    return 0, b""
