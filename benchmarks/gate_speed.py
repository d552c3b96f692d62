"""How long the gate takes once the models have answered, and how much memory.

    python -m benchmarks.gate_speed [--repeats 3]

Per-image confusions are made up: 1,449 images and 21 classes as in the validation set of PASCAL VOC 2012, one to three
classes an image, areas with a heavy tail. Each repeat is a process of its own that times ``judge`` (intervals, flows,
power, verdict) with 10,000 resamples; its peak memory is that of the whole process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

IMAGES, CLASSES, RESAMPLES = 1449, 21, 10_000


def stacks(seed: int = 0):
    """Return (N, C, C) confusions of a parent and of a candidate that differs a little in every image."""
    import numpy as np

    rng = np.random.default_rng(seed)
    pair = np.zeros((2, IMAGES, CLASSES, CLASSES), dtype=np.int64)
    for image in range(IMAGES):
        for index in rng.choice(np.arange(1, CLASSES), size=rng.integers(1, 4), replace=False):
            area = int(min(60_000, rng.lognormal(9, 1.2))) + 50
            found = rng.beta(6, 2)
            for row, share in enumerate((found, np.clip(found + rng.normal(0, 0.05), 0, 1))):
                other = rng.integers(1, CLASSES)
                pair[row, image, index, index] += int(area * share)
                pair[row, image, index, 0] += int(area * (1 - share) * 0.7)
                pair[row, image, index, other] += int(area * (1 - share) * 0.3)
                pair[row, image, 0, other] += int(area * 0.05)
        pair[:, image, 0, 0] += 100_000
    return pair[0], pair[1]


def once() -> None:
    """Time one verdict and print seconds and peak memory as JSON."""
    import time

    from benchmarks.record import peak_mib
    from cilseg.classes import ClassSet
    from cilseg.evaluate.gate import GatePolicy, judge

    names = [f"class {i:02}" for i in range(1, CLASSES)]
    class_set = ClassSet.base(names[:-2]).extend(names[-2:], step=1)
    parent, candidate = stacks()
    started = time.perf_counter(), time.process_time()
    result = judge(parent, candidate, class_set=class_set, old=names[:-2], policy=GatePolicy(resamples=RESAMPLES))
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = peak_mib()
    print(json.dumps({"seconds": wall, "cpu_s": cpu, "peak_mib": peak, "verdict": result.verdict}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        once()
        return
    from benchmarks.record import write_record

    rows = []
    for _ in range(args.repeats):
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "benchmarks.gate_speed", "--once"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({**json.loads(done.stdout), "load_1min": round(load, 2)})
        print(rows[-1], flush=True)
    seconds = sorted(r["seconds"] for r in rows)
    write_record(
        "gate_speed",
        command=f"python -m benchmarks.gate_speed --repeats {args.repeats}",
        rows=rows,
        summary={
            "seconds": round(seconds[len(seconds) // 2], 2),
            "seconds_least": round(seconds[0], 2),
            "cpu_s": round(sorted(r["cpu_s"] for r in rows)[len(rows) // 2], 2),
            "peak_mib": round(max(r["peak_mib"] for r in rows), 1),
        },
        table=[
            "| run | seconds | CPU seconds | peak MiB | load before |",
            "|---|---|---|---|---|",
            *(
                f"| {i} | {r['seconds']:.2f} | {r['cpu_s']:.2f} | {r['peak_mib']:.0f} | {r['load_1min']} |"
                for i, r in enumerate(rows, start=1)
            ),
        ],
        note=f"{IMAGES:,} images, {CLASSES} classes, {RESAMPLES:,} resamples; the models' answers are not part of it. "
        "Summary: median over the runs, the largest peak.",
    )


if __name__ == "__main__":
    main()
