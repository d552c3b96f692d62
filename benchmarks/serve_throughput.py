"""What the server costs over the embedded runtime: python -m benchmarks.serve_throughput

One ResNet-18 INT8 model at 512 x 512 px, in interleaved rounds: ``Segmenter`` called by as many threads as the servers
have clients (decoded arrays, JPEG files), ``cilseg serve`` (binary tensors, JPEG bodies), a FastAPI endpoint with
onnxruntime, LitServe. Each server is a process of its own; the load comes from ``loadgen.c``, compiled here; its CPU
share is recorded. Then Poisson arrivals at 70 % of the measured capacity; the p99 of the latency is compared
with that of an M/D/1 queue whose service time is the reciprocal of the capacity.

``--quick`` runs few seconds and records nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.record import write_record
from benchmarks.serve_model import SIDE_PX, make_version
from cilseg.registry import Registry
from cilseg_serve import Segmenter

COMMAND = "python -m benchmarks.serve_throughput"
UTILISATION = 0.7
_PICTURES = 8
_PORT = re.compile(r"serving on http://[^ \"]+?:(\d+)")


@dataclass(frozen=True)
class Load:
    """What a run of the generator measured; latencies in seconds."""

    per_s: float
    refused: int
    errors: int
    generator_cpu_share: float
    latencies: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", help="registry of --ref; default: an untrained model is made")
    parser.add_argument("--ref", default="resnet18", help="model to serve")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--poisson-seconds", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", default="", help="further options of cilseg serve, in one text")
    asked = parser.parse_args()
    if asked.quick:
        asked.seconds, asked.rounds, asked.poisson_seconds = min(asked.seconds, 4.0), 1, min(asked.poisson_seconds, 6.0)
    with tempfile.TemporaryDirectory() as folder:
        measure(asked, Path(folder))


def measure(asked: argparse.Namespace, folder: Path) -> None:
    registry = Registry.open(asked.registry or folder / "registry")
    if asked.registry is None:
        make_version(registry)
    version = registry.resolve(asked.ref)
    generator = build_generator(folder)
    rng = np.random.default_rng(0)
    arrays = [picture(rng) for _ in range(_PICTURES)]
    files = [jpeg(a) for a in arrays]
    segmenter = Segmenter(version.ref, registry=registry)
    check_answers(asked, registry, segmenter, arrays, files, folder)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(serving(registry, version.ref, asked.serve))
        targets: dict[str, tuple[int, list[Path]]] = {
            "server, binary": (
                ours,
                [request(folder, "binary", i, *binary_body(version.name, a)) for i, a in enumerate(arrays)],
            ),
            "server, JPEG": (ours, [request(folder, "jpeg", i, "/v1/segment", {}, f) for i, f in enumerate(files)]),
        }
        model = registry.attachment(version, "model.onnx").path
        for name, module in peers().items():
            port = stack.enter_context(peer(module, model))
            check_peer(name, port, files[0], segmenter)
            targets[name] = (port, [request(folder, name, i, "/predict", {}, f) for i, f in enumerate(files)])
        embedded: dict[str, Callable[[int], Any]] = {
            "embedded, arrays": lambda i: segmenter.segment(arrays[i % _PICTURES]),
            "embedded, JPEG": lambda i: embedded_jpeg(segmenter, files[i % _PICTURES]),
        }
        rates: dict[str, list[float]] = {name: [] for name in (*embedded, *targets)}
        shares: list[float] = []
        faults: dict[str, int] = {}
        for turn in range(asked.rounds):
            for name, call in embedded.items():
                rates[name].append(threads_per_s(call, asked.clients, asked.seconds))
            for name, (port, requests) in targets.items():
                load = run_load(
                    generator, folder, port, requests, clients=asked.clients, seconds=asked.seconds, seed=turn
                )
                rates[name].append(load.per_s)
                shares.append(load.generator_cpu_share)
                faults[name] = faults.get(name, 0) + load.refused + load.errors
            print({name: round(values[-1], 2) for name, values in rates.items()}, file=sys.stderr)
        capacity = statistics.median(rates["server, binary"])
        port, requests = targets["server, binary"]
        open_loop = run_load(
            generator,
            folder,
            port,
            requests,
            clients=256,
            seconds=asked.poisson_seconds,
            rate=UTILISATION * capacity,
            seed=1,
        )
    p99 = float(np.quantile(open_loop.latencies, 0.99))
    expected = md1_quantile(1 / capacity, UTILISATION, 0.99)
    median = {name: statistics.median(values) for name, values in rates.items()}
    summary = {
        "server_over_embedded_binary": round(median["server, binary"] / median["embedded, arrays"], 4),
        "server_over_embedded_jpeg": round(median["server, JPEG"] / median["embedded, JPEG"], 4),
        "server_over_plain_fastapi": over(median, "plain FastAPI"),
        "server_over_litserve": over(median, "LitServe"),
        "p99_over_md1": round(p99 / expected, 4),
        "generator_cpu_share": round(max(shares), 4),
    }
    table = ["| | p10 a second | median | p90 | refused or failed |", "|---|---|---|---|---|"]
    rows: list[dict[str, Any]] = []
    for name, values in rates.items():
        low, high = float(np.quantile(values, 0.1)), float(np.quantile(values, 0.9))
        rows.append({"what": name, "per_s": values, "faults": faults.get(name, 0)})
        table.append(f"| {name} | {low:.2f} | {median[name]:.2f} | {high:.2f} | {faults.get(name, 0)} |")
    rows.append(
        {
            "what": "Poisson arrivals",
            "rate_per_s": UTILISATION * capacity,
            "answers": len(open_loop.latencies),
            "faults": open_loop.refused + open_loop.errors,
            "p50_s": float(np.quantile(open_loop.latencies, 0.5)),
            "p99_s": p99,
            "md1_p99_s": expected,
        }
    )
    table += ["", f"Poisson arrivals at {UTILISATION:.0%}: p99 {p99:.3f} s, M/D/1 {expected:.3f} s."]
    note = (
        f"{asked.clients} clients, {asked.rounds} interleaved rounds of {asked.seconds:g} s, {SIDE_PX} x {SIDE_PX} px, "
        f"options of cilseg serve: {asked.serve or 'none'}. The generator took at most {max(shares):.1%} of one core."
    )
    print("\n".join(table))
    print(json.dumps(summary, indent=1))
    if not asked.quick:
        write_record("serve_throughput", command=COMMAND, rows=rows, summary=summary, table=table, note=note)


def over(median: dict[str, float], peer_name: str) -> float | None:
    """Return our JPEG throughput over that of a peer; None where it is not installed."""
    return round(median["server, JPEG"] / median[peer_name], 4) if peer_name in median else None


def build_generator(folder: Path) -> Path:
    """Compile ``loadgen.c``."""
    target = folder / "loadgen"
    source = Path(__file__).with_name("loadgen.c")
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(target), str(source), "-lm"], check=True)
    return target


def picture(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random image, which compresses about as photographs do."""
    coarse = rng.integers(0, 256, (SIDE_PX // 16, SIDE_PX // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def embedded_jpeg(segmenter: Segmenter, data: bytes) -> bytes:
    """Decode, segment and encode the class map, as the server does."""
    from cilseg_serve.images import decode_image, encode_mask

    result = segmenter.segment(decode_image(io.BytesIO(data), name="image"))
    return encode_mask(result.mask, result.palette)


def binary_body(model: str, array: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    """Return path, headers and body of an ``/infer`` request with binary tensors."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, *array.shape],
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "outputs": [{"name": "mask", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return f"/v2/models/{model}/infer", headers, head + array.tobytes()


def request(folder: Path, kind: str, number: int, path: str, headers: dict[str, str], body: bytes) -> Path:
    """Write the bytes of one HTTP request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in {"Content-Type": "application/octet-stream", **headers}.items()]
    target = folder / f"{kind}-{number}.request".replace(" ", "-")
    target.write_bytes("\r\n".join([*lines, "", ""]).encode() + body)
    return target


def run_load(
    generator: Path,
    folder: Path,
    port: int,
    requests: Sequence[Path],
    *,
    clients: int,
    seconds: float,
    seed: int,
    rate: float = 0.0,
) -> Load:
    """Send ``requests`` in turn: in a closed loop, or as Poisson arrivals of ``rate`` a second."""
    latencies = folder / "latencies"
    command = [generator, "127.0.0.1", port, clients, seconds, rate, seed, latencies, *requests]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return Load(
        found["answers"] / found["seconds"],
        found["refused"],
        found["errors"],
        found["cpu_s"] / found["seconds"],
        np.fromfile(latencies, dtype=np.float64),
    )


def threads_per_s(call: Callable[[int], Any], threads: int, seconds: float) -> float:
    """Begin calls from ``threads`` threads for ``seconds``; return calls a second until the last of them ended."""
    counts = [0] * threads
    begin = time.perf_counter()

    def work(thread: int) -> None:
        while time.perf_counter() < begin + seconds:
            call(thread + threads * counts[thread])
            counts[thread] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def md1_quantile(service_s: float, utilisation: float, quantile: float, *, n: int = 2_000_000, seed: int = 0) -> float:
    """Return a quantile of the time in an M/D/1 queue (waiting and service), simulated by Lindley's recursion."""
    gaps = np.random.default_rng(seed).exponential(service_s / utilisation, n)
    walk = np.concatenate([[0.0], np.cumsum(service_s - gaps[:-1])])
    waiting = walk - np.minimum.accumulate(walk)
    return float(np.quantile(waiting, quantile) + service_s)


@contextlib.contextmanager
def serving(registry: Registry, ref: str, options: str) -> Iterator[int]:
    """Run ``cilseg serve`` and yield its port."""
    command = [sys.executable, "-m", "cilseg.cli.main", "serve", ref, "--port", "0", "--registry", str(registry.root)]
    command += ["--max-queue", "512", "--timeout", "300", *options.split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = None
    for line in process.stderr:
        if match := _PORT.search(line):
            port = int(match[1])
            break
    drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
    drain.start()
    try:
        if port is None:
            raise RuntimeError("cilseg serve did not start")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def peers() -> dict[str, str]:
    """Return the peers that are installed."""
    found = {"plain FastAPI": "benchmarks.serve_peers.plain_fastapi"}
    if importlib.util.find_spec("litserve"):
        found["LitServe"] = "benchmarks.serve_peers.lit_serve"
    else:
        print("LitServe is not installed and left out: pip install litserve", file=sys.stderr)
    return found


@contextlib.contextmanager
def peer(module: str, model: Path) -> Iterator[int]:
    """Run a peer's server and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-m", module, str(model), str(port)], start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{module} did not start")
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def check_peer(name: str, port: int, data: bytes, segmenter: Segmenter) -> None:
    """Compare a peer's class map with the embedded runtime's, before anything is timed."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/predict", data, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    body = answer.read()
    expected = segmenter.segment(Image.open(io.BytesIO(data))).mask
    if answer.status != 200 or not np.array_equal(np.asarray(Image.open(io.BytesIO(body))), expected):
        raise RuntimeError(f"{name} answers {answer.status}, or another class map than the embedded runtime")


def check_answers(
    asked: argparse.Namespace,
    registry: Registry,
    segmenter: Segmenter,
    arrays: Sequence[np.ndarray],
    files: Sequence[bytes],
    folder: Path,
) -> None:
    """Compare one answer of each kind with the embedded runtime's, before anything is timed."""
    del folder
    with serving(registry, registry.resolve(asked.ref).ref, asked.serve) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        path, headers, body = binary_body(registry.resolve(asked.ref).name, arrays[0])
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data, head = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
        mask = np.frombuffer(data[head:], np.uint8).reshape(SIDE_PX, SIDE_PX)
        if not np.array_equal(mask, segmenter.segment(arrays[0]).mask):
            raise RuntimeError("the server's binary answer differs from the embedded runtime's")
        connection.request("POST", "/v1/segment", files[0])
        png = connection.getresponse().read()
        if png != embedded_jpeg(segmenter, files[0]):
            raise RuntimeError("the server's JPEG answer differs from the embedded runtime's")


if __name__ == "__main__":
    main()
