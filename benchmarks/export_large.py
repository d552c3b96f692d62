"""Time and peak memory of exporting a ResNet-101 model to ONNX with its parity check.

    python -m benchmarks.export_large [--side 512] [--images 6] [--threads 2]

DeepLabV3 head, 21 classes, output stride 16, float32. The weights are random, which changes neither time nor memory;
normalisation statistics come from two batches, so that the logits are worth comparing. The work is done in a process of
its own, whose peak memory is read when it ends. Figures: seconds, peak_gib, passed (1 if every comparison passed).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_record

BACKBONE = "resnet101"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", default=BACKBONE, help="a smaller one, to try the benchmark")
    parser.add_argument("--name", default="export_large")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(export(args.backbone, args.side, args.images, args.threads)))
        return
    command = [sys.executable, "-m", "benchmarks.export_large", "--child", *sys.argv[1:]]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    # Of this one child: the figure of RUSAGE_CHILDREN would be the largest of all.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"The export ended with status {status}.")
    row: dict[str, Any] = {
        "backbone": args.backbone,
        "side_px": args.side,
        "images": args.images,
        "seconds": round(seconds, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 3),
        **json.loads(output.splitlines()[-1]),
    }
    table = ["| what | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in row.items())]
    write_record(
        args.name,
        command="python -m benchmarks.export_large",
        rows=[row],
        summary={"seconds": row["seconds"], "peak_gib": row["peak_gib"], "passed": float(row["passed"])},
        table=table,
        note=f"{args.threads} threads, interpreter start and imports included. The parity check asks {args.images} "
        "images at three sizes, alone and in batches of three.",
    )
    print("\n".join(table))


def export(backbone: str, side_px: int, n_images: int, threads: int) -> dict[str, Any]:
    """Export and compare; return what took how long."""
    import numpy as np
    import torch
    from PIL import Image

    from cilseg.bundle import Manifest
    from cilseg.classes import ClassSet
    from cilseg.config import ModelConfig
    from cilseg.models.build import new_model
    from cilseg.models.inference import InferenceGraph
    from cilseg_export.onnx_export import export_onnx
    from cilseg_export.parity import check_parity

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n_images, 7, 7, 3), dtype=np.uint8)
    images = [np.array(Image.fromarray(c).resize((side_px, side_px), Image.Resampling.BICUBIC)) for c in coarse]
    classes = ClassSet.base([f"class {i}" for i in range(1, 21)])
    config = ModelConfig.model_validate({"backbone": backbone, "output_stride": 16, "weights": "none"})
    model = new_model(config, classes, seed=0)
    with torch.no_grad():
        model.train()
        for _ in range(2):
            model(torch.from_numpy(np.stack([images[0], images[-1]])[:, ::2, ::2].copy()).permute(0, 3, 1, 2))
    model.eval()
    manifest = Manifest(
        classes=classes.to_json(),
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        method="none",
        seed=0,
        created_at="",
    )
    graph = InferenceGraph(model, model.preprocessing, outputs=("mask", "logits")).eval()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        record = export_onnx(graph, path, manifest=manifest, version_digest=manifest.digest)
        started = time.perf_counter()
        report = check_parity(graph, path, images, out_dir=Path(temporary))
        parity_s = time.perf_counter() - started
    summary = report.summary()
    return {
        "export_s": record.seconds,
        "parity_s": round(parity_s, 1),
        "mib": round(record.size_bytes / 2**20, 1),
        "passed": report.passed,
        "comparisons": summary["comparisons"],
        "largest_logit_error": summary["largest_logit_error"],
    }


if __name__ == "__main__":
    main()
