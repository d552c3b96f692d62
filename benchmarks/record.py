"""How every benchmark writes its result: JSON, and a table beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return processor, cores and load of this machine."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "load_1min": round(os.getloadavg()[0], 2)}


def write_record(
    name: str,
    *,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float | None],
    table: Sequence[str],
    note: str = "",
) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``; ``table`` holds the lines of a Markdown table."""
    from cilseg.train.environment import environment

    payload = {
        "name": name,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": environment(),
        "note": note,
        "summary": dict(summary),
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    text = [f"# {name}", "", f"`{command}`", "", *table, "", note, ""]
    (RESULTS / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
