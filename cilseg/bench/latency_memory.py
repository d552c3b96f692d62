"""Peak memory of one runtime: run in a process of its own by ``cilseg.bench.latency``; prints MiB.

It imports what the row needs and no more, since that would count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    job = json.loads(sys.argv[1])
    batch = np.zeros((*job["shape"], 3), dtype=np.uint8)
    if job["path"] is None:
        from cilseg.bench.latency import torch_graph_candidate
        from cilseg.bundle import read_manifest
        from cilseg.models.build import load_model

        folder = Path(job["version"])
        manifest = read_manifest(folder)
        model = load_model(folder, manifest)
        answer = torch_graph_candidate(model, manifest.preprocessing, threads=job["threads"]).answer
        for _ in range(job["calls"]):
            answer(batch)
    else:
        from cilseg_serve.backends.base import TENSORRT
        from cilseg_serve.backends.opening import open_session

        threads = None if job["backend"] == TENSORRT else job["threads"]
        session = open_session(Path(job["path"]), backend=job["backend"], threads=threads)
        for _ in range(job["calls"]):
            session.run(batch, ["mask"])
    print(peak_mib())


def peak_mib() -> float:
    """Return the peak of this process's resident memory; where only ``ru_maxrss`` tells, it may be the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    main()
