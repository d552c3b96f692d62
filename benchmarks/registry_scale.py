"""How long list, show and promote take in-process with thousands of versions.

Run with ``python -m benchmarks.registry_scale``.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.registry_scenarios import NAME, make_bundle
from cilseg.bundle import read_manifest
from cilseg.registry import Registry
from cilseg.registry.attachments import sidecar_bytes, sidecar_entry
from cilseg.registry.describe import details, summaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cilseg-scale-") as temporary:
        root = Path(temporary)
        registry = _filled(root, arguments.versions)
        turn = iter(range(10**9))
        work: dict[str, Callable[[], object]] = {
            "list": lambda: summaries(Registry.open(registry.root)),
            "show": lambda: details(Registry.open(registry.root), f"{NAME}:{arguments.versions // 2}"),
            "promote": lambda: Registry.open(registry.root).promote(f"{NAME}:{next(turn) % arguments.versions + 1}"),
        }
        rows: list[dict[str, Any]] = []
        for name, function in work.items():
            taken = [_timed(function) for _ in range(arguments.repeats)]
            times = sorted(wall for wall, _ in taken)
            rows.append(
                {
                    "operation": name,
                    "p10_s": times[len(times) // 10],
                    "median_s": statistics.median(times),
                    "p90_s": times[len(times) * 9 // 10],
                    "median_cpu_s": statistics.median(cpu for _, cpu in taken),
                }
            )
    table = ["| operation | p10 s | median s | p90 s | median CPU s |", "|---|---|---|---|---|"]
    table += [
        f"| {r['operation']} | {r['p10_s']:.3f} | {r['median_s']:.3f} | {r['p90_s']:.3f} | {r['median_cpu_s']:.3f} |"
        for r in rows
    ]
    summary = {f"{row['operation']}_s": row["median_s"] for row in rows}
    write_record(
        "registry_scale",
        command=f"python -m benchmarks.registry_scale --versions {arguments.versions}",
        rows=rows,
        summary=summary,
        table=table,
        note=f"{arguments.versions} versions of one name on SQLite; every call opens the registry anew.",
    )
    print(summary)


def _filled(root: Path, count: int) -> Registry:
    """Make a registry of ``count`` versions: two are registered, the others written beside them, then it is rebuilt."""
    registry = Registry.open(root / "registry")
    for seed in range(2):
        registry.register(NAME, make_bundle(root / f"bundle-{seed}", seed=seed, size=1024), who="benchmark")
    model = registry.store.read_events()[-1]
    rows = []
    for number in range(3, count + 1):
        bundle = make_bundle(root / "new", seed=number, size=1024)
        digest = read_manifest(bundle).digest
        if number % 10 == 0:
            report = b'{"verdict": "PROMOTE"}'
            sha256 = "sha256:" + hashlib.sha256(report).hexdigest()
            entry = sidecar_entry(
                "gate.json", digest=digest, sha256=sha256, size_bytes=len(report), kind="gate", metadata={}
            )
            (bundle / "attachments").mkdir()
            (bundle / "attachments" / "gate.json").write_bytes(report)
            (bundle / "attachments" / "gate.json.json").write_bytes(sidecar_bytes(entry))
        bundle.rename(registry.root / "versions" / digest.removeprefix("sha256:"))
        rows.append({**model, "sequence": number, "number": number, "digest": digest})
    registry.store.append_events(rows)
    Registry.rebuild(registry.root)
    return Registry.open(registry.root)


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the clock, and of this process on the processor: on a busy machine they differ."""
    begin, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin, time.process_time() - busy


if __name__ == "__main__":
    main()
