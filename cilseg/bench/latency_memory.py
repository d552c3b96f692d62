"""Peak memory of one runtime: run in a process of its own by ``cilseg.bench.latency``; prints MiB."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    from cilseg.bench.latency import WARM_UP, WARM_UP_OF
    from cilseg.bench.record import peak_mib

    job = json.loads(sys.argv[1])
    calls = WARM_UP_OF.get(job["backend"], WARM_UP)
    batch = np.zeros((*job["shape"], 3), dtype=np.uint8)
    if job["path"] is None:
        from cilseg.bench.latency import torch_graph_candidate
        from cilseg.bundle import read_manifest
        from cilseg.models.build import load_model

        folder = Path(job["version"])
        manifest = read_manifest(folder)
        model = load_model(folder, manifest)
        answer = torch_graph_candidate(model, manifest.preprocessing, threads=job["threads"]).answer
        for _ in range(calls):
            answer(batch)
    else:
        from cilseg_serve.backends.base import TENSORRT
        from cilseg_serve.backends.opening import open_session

        threads = None if job["backend"] == TENSORRT else job["threads"]
        session = open_session(Path(job["path"]), backend=job["backend"], threads=threads)
        for _ in range(calls):
            session.run(batch, ["mask"])
    print(peak_mib())


if __name__ == "__main__":
    main()
