"""How long the command line and the embedded runtime take to start: python -m benchmarks.startup

Ten warm starts of each, interleaved with an empty interpreter as the baseline; seconds of the whole process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.record import write_record

RUNS = 10
COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": ("-c", "pass"),
    "cilseg --help": ("-m", "cilseg.cli.main", "--help"),
    "import cilseg_serve": ("-c", "import cilseg_serve"),
    "from cilseg_serve import Segmenter": ("-c", "from cilseg_serve import Segmenter"),
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(RUNS + 1):  # the first round warms the file cache up
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if run:
                seconds[name].append(time.perf_counter() - started)
    code = "import sys, cilseg_serve; print('torch' in sys.modules)"
    loads_torch = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    rows, table = [], ["| start | p10 s | median s | p90 s | over empty interpreter |", "|---|---|---|---|---|"]
    empty = statistics.median(seconds["python -c pass"])
    for name, values in seconds.items():
        low, *_, high = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        rows.append({"start": name, "p10_s": low, "median_s": median, "p90_s": high, "ratio": median / empty})
        table.append(f"| `{name}` | {low:.3f} | {median:.3f} | {high:.3f} | {median / empty:.1f} |")
    medians = {r["start"]: r["median_s"] for r in rows}
    summary = {
        "help_s": round(medians["cilseg --help"], 3),
        "import_serve_s": round(medians["import cilseg_serve"], 3),
        "import_segmenter_s": round(medians["from cilseg_serve import Segmenter"], 3),
        "serve_loads_torch": float(loads_torch == "True"),
    }
    write_record(
        "startup",
        command="python -m benchmarks.startup",
        rows=rows,
        summary=summary,
        table=table,
        note=f"{RUNS} warm starts each, interleaved. `import cilseg_serve` loads torch: {loads_torch}.",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
