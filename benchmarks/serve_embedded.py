"""The embedded runtime against the raw runtime call, and against a torch script that a user would write.

    python -m benchmarks.serve_embedded [--onnx int8.onnx] [--backend onnxruntime] [--threads 2] [--images 200]

Without ``--onnx`` the INT8 export of the same ResNet-18 DeepLabV3 (random weights) is used; with it the file must be
of that network. Overhead: calls of ``Segmenter.segment`` and of the session it holds, in turn, on one decoded array.
End to end: processes of their own, in turn, each from JPEG files to masks; memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.record import peak_mib, write_record

SIDE_PX = 512
WARM_UP = 3


def write_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / f"{index:04}.jpg", quality=90)


def torch_script(threads: int) -> Callable[[Path], object]:
    """The script that a user would write: load, normalise, run, arg-max."""
    import torch

    from benchmarks.serve_models import deeplab

    torch.set_num_threads(threads)
    model = deeplab()

    @torch.inference_mode()
    def segment(path: Path) -> object:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        logits = model.upsample(model(image), *pixels.shape[:2])
        return logits.argmax(dim=1)[0].to(torch.uint8).numpy()

    return segment


def ours(onnx: Path, threads: int, backend: str) -> Callable[[Path], object]:
    from cilseg_serve import Segmenter

    return Segmenter.from_onnx(onnx, threads=threads, backend=backend).segment


def child(kind: str, onnx: Path, photos: Path, threads: int, backend: str) -> None:
    """Run one side in this process and print its throughput and peak memory as JSON."""
    segment = torch_script(threads) if kind == "torch" else ours(onnx, threads, backend)
    paths = sorted(photos.iterdir())
    for path in paths[:WARM_UP]:
        segment(path)
    started = time.perf_counter()
    for path in paths:
        segment(path)
    seconds = time.perf_counter() - started
    print(json.dumps({"images_per_s": len(paths) / seconds, "peak_mib": peak_mib()}))


def overhead(onnx: Path, threads: int, calls: int, backend: str) -> tuple[list[float], list[float]]:
    """Seconds of each raw call and of each ``segment``, in turn, on one decoded array."""
    from cilseg_serve import Segmenter

    segmenter = Segmenter.from_onnx(onnx, threads=threads, backend=backend)
    image = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    batch = image[None]
    backend_call = segmenter._session
    session = getattr(backend_call, "_session", None)  # onnxruntime's own; with the others the backend's call is taken
    raw: list[float] = []
    whole: list[float] = []

    def call_raw() -> None:
        if session is None:
            backend_call.run(batch, ["mask"])
        else:
            session.run(["mask"], {"image": batch})

    for number in range(calls + WARM_UP):
        pair = [(call_raw, raw), (lambda: segmenter.segment(image), whole)]
        for call, times in pair if number % 2 else pair[::-1]:
            started = time.perf_counter()
            call()
            if number >= WARM_UP:
                times.append(time.perf_counter() - started)
    return raw, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--backend", default="auto", help="runtime of the Segmenter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="serve_embedded")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, onnx, photos = options.child
        child(kind, Path(onnx), Path(photos), options.threads, options.backend)
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        write_photos(photos, options.images)
        onnx = options.onnx
        if onnx is None:
            from benchmarks.serve_model import to_int8
            from benchmarks.serve_models import export_deeplab

            onnx = to_int8(export_deeplab(Path(folder) / "model.onnx"))
        results: dict[str, list[dict[str, float]]] = {"torch": [], "cilseg": []}
        for _ in range(options.rounds):
            for kind, found in results.items():
                command = [sys.executable, "-m", "benchmarks.serve_embedded", "--threads", str(options.threads)]
                command += ["--backend", options.backend]
                command += ["--child", kind, str(onnx), str(photos)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                found.append(json.loads(done.stdout))
        raw, whole = overhead(onnx, options.threads, options.calls, options.backend)
    speed = {kind: statistics.median(r["images_per_s"] for r in found) for kind, found in results.items()}
    memory = {kind: statistics.median(r["peak_mib"] for r in found) for kind, found in results.items()}
    ratios = [b / a for a, b in zip(raw, whole, strict=True)]
    rows: list[dict[str, object]] = [
        {"side": kind, "images_per_s": round(speed[kind], 3), "peak_mib": round(memory[kind], 1)} for kind in results
    ]
    rows += [
        {"side": name, **dict(zip(("p10_s", "median_s", "p90_s"), _tenths(times), strict=True))}
        for name, times in (("raw session", raw), ("Segmenter.segment", whole))
    ]
    summary = {
        "overhead_over_raw_session": round(statistics.median(ratios) - 1, 4),
        "throughput_over_torch_script": round(speed["cilseg"] / speed["torch"], 3),
        "memory_over_torch_script": round(memory["cilseg"] / memory["torch"], 3),
    }
    table = ["| side | result |", "|---|---|"]
    table += [f"| {row['side']} | {', '.join(f'{k} {v}' for k, v in row.items() if k != 'side')} |" for row in rows]
    write_record(
        options.name,
        command=f"python -m benchmarks.serve_embedded --backend {options.backend}"
        + (" --onnx FILE" if options.onnx else ""),
        rows=rows,
        summary=summary,
        table=table,
        note=f"{SIDE_PX} x {SIDE_PX} px, {options.threads} threads, {options.images} images, {options.rounds} rounds.",
    )
    print("\n".join(table))


def _tenths(times: list[float]) -> tuple[float, float, float]:
    low, *_, high = statistics.quantiles(times, n=10)
    return round(low, 5), round(statistics.median(times), 5), round(high, 5)


if __name__ == "__main__":
    main()
