"""How every benchmark writes its result: JSON, and a table beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cilseg.config import configs_directory


def results_directory(otherwise: Path) -> Path:
    """Return ``benchmarks/results`` of the checkout, or ``otherwise`` where cilseg is installed without one."""
    checkout = configs_directory().parent / "benchmarks" / "results"
    return checkout if checkout.is_dir() else otherwise


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
    folder: Path,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float | None],
    table: Sequence[str],
    note: str = "",
) -> Path:
    """Write ``NAME.json`` and ``NAME.md`` into ``folder``; ``table`` holds Markdown lines. Return the JSON's path."""
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
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    text = [f"# {name}", "", f"`{command}`", "", *table, "", note, ""]
    (folder / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
    return path
