"""Peak memory of one runtime: run in a process of its own by ``cilseg.bench.latency``; prints MiB."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

_CALLS = 3


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
        for _ in range(_CALLS):
            answer(batch)
    else:
        from cilseg_serve.backends.base import TENSORRT
        from cilseg_serve.backends.opening import open_session

        threads = None if job["backend"] == TENSORRT else job["threads"]
        session = open_session(Path(job["path"]), backend=job["backend"], threads=threads)
        for _ in range(_CALLS):
            session.run(batch, ["mask"])
    scale = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20)


if __name__ == "__main__":
    main()
