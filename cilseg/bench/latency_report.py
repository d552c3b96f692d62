"""The measured rows as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cilseg.bench.latency import LatencyRequest, LatencyRow
from cilseg.bench.latency_plot import draw_speed_accuracy
from cilseg.bench.record import machine
from cilseg.bundle import write_file_atomically
from cilseg.errors import InputError
from cilseg.registry import Version

SCHEMA = "cilseg.latency/1"


def parse_size(text: str) -> tuple[int, int]:
    """Return ``(height, width)`` of ``WIDTHxHEIGHT``.

    Raises:
        InputError: another form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise InputError(f"{text!r} is no size. Write width x height in pixels, for example 1024x512.")
    return int(match[2]), int(match[1])


def table_rows(rows: Sequence[LatencyRow]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Return columns and lines of the table, the fastest first within a size and batch."""
    columns = ["backend", "precision", "size", "batch", "p10 ms", "median", "p90", "img/s", "over torch", "MiB", "mIoU"]
    lines: list[tuple[object, ...]] = []
    for row in sorted(rows, key=lambda r: (r.height * r.width, r.batch, r.median_ms)):
        lines.append(
            (
                row.backend + ("" if row.counts else " (not verified)"),
                row.precision,
                f"{row.width}x{row.height}",
                row.batch,
                f"{row.p10_ms:.1f}",
                f"{row.median_ms:.1f}",
                f"{row.p90_ms:.1f}",
                f"{row.images_per_s:.1f}",
                "" if row.over_torch is None else f"{row.over_torch:.2f}",
                "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
                "" if row.miou is None else f"{row.miou:.2f}",
            )
        )
    return columns, lines


def best(rows: Sequence[LatencyRow]) -> dict[str, Any] | None:
    """Return the fastest row that counts at the first size and batch, torch left out."""
    counted = [r for r in rows if r.counts and r.backend != "torch-eager"]
    first = [r for r in counted if (r.height, r.width, r.batch) == (rows[0].height, rows[0].width, rows[0].batch)]
    return min(first, key=lambda r: r.median_ms).to_json() if first else None


def write_report(version: Version, rows: Sequence[LatencyRow], request: LatencyRequest, folder: Path) -> dict[str, Any]:
    """Write ``latency.json`` and ``latency.svg`` into ``folder`` (made if missing); return what the JSON holds."""
    payload: dict[str, Any] = {
        "schema": SCHEMA,
        "version": version.ref,
        "digest": version.digest,
        "machine": machine(),
        "request": asdict(request),
        "best": best(rows),
        "rows": [row.to_json() for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file_atomically(folder / "latency.json", (json.dumps(payload, indent=1) + "\n").encode())
    picture = draw_speed_accuracy(rows, title=f"{version.ref}: speed against accuracy")
    write_file_atomically(folder / "latency.svg", picture.encode())
    return payload
