"""Whether the server stays right and small for half an hour: python -m benchmarks.serve_soak

Mixed load (binary tensors, JPEG bodies, metrics, drift) with 5 % hostile requests from ``serve_fuzz``; the alias moves
between two versions every few seconds; half way through the server is killed with -9 and started again. Every answer is
compared with the embedded runtime's answer of the version that it names. Memory is read from ``/proc`` every few
seconds; growth compares the median of the last fifth of the time after the restart with that of its second fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.record import write_record
from benchmarks.serve_fuzz import Fuzzer
from benchmarks.serve_model import NAME, make_version
from benchmarks.serve_throughput import binary_body, embedded_jpeg, jpeg, picture
from cilseg.bundle import write_manifest
from cilseg.registry import Registry, Version
from cilseg_serve import Segmenter

COMMAND = "python -m benchmarks.serve_soak"
HOSTILE = 0.05
_SIDE_PX = 128


class Server:
    """``cilseg serve`` on one port, to be killed and started again."""

    def __init__(self, registry: Registry, options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._command = [sys.executable, "-m", "cilseg.cli.main", "serve", NAME, "--port", str(self.port), "--quiet"]
        self._command += ["--registry", str(registry.root), *options.split()]
        self.down = True
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/v2/health/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                if self.process.poll() is not None:
                    raise RuntimeError("cilseg serve did not start") from None
            time.sleep(0.2)
        self.down = False

    def kill(self) -> None:
        self.down = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def memory_mib(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else 0.0


class Client:
    """One thread of mixed load; counts what came back."""

    def __init__(
        self, server: Server, expected: dict[str, list[tuple[bytes, bytes]]], arrays: list[Any], seed: int
    ) -> None:
        self._server, self._expected, self._arrays = server, expected, arrays
        self._rng = np.random.default_rng(seed)
        self._files = [jpeg(a) for a in arrays]
        self._url = f"http://127.0.0.1:{server.port}"
        document = httpx.get(f"{self._url}/openapi.json").json()
        self._fuzzer = Fuzzer(server.port, document, self._files, picture(self._rng), seed)
        self.codes: Counter[str] = Counter()
        self.wrong = self.unexpected = 0

    def run(self, until: float) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while time.monotonic() < until:
                if self._server.down:
                    time.sleep(0.1)
                    continue
                if self._rng.random() < HOSTILE:
                    self._fuzzer.run(1)
                    continue
                try:
                    self._good(client)
                except httpx.HTTPError as error:
                    time.sleep(0.5)  # a request in flight when the server is killed is lost before `down` is seen
                    if not self._server.down:
                        self.codes[type(error).__name__] += 1
        self.unexpected += len(self._fuzzer.bad) + sum(self.codes.values()) - self.codes["200"] - self.codes["429"]

    def _good(self, client: httpx.Client) -> None:
        number, draw = int(self._rng.integers(len(self._arrays))), self._rng.random()
        if draw < 0.04:
            self.codes[str(client.get("/metrics" if draw < 0.02 else "/v1/drift").status_code)] += 1
            return
        if draw < 0.5:
            path, headers, body = binary_body(NAME, self._arrays[number])
            answer = client.post(path, content=body, headers=headers)
            if answer.status_code == 200:
                length = int(answer.headers["inference-header-content-length"])
                ref = f"{NAME}:{json.loads(answer.content[:length])['model_version']}"
                self.wrong += answer.content[length:] != self._expected[ref][number][0]
        else:
            answer = client.post("/v1/segment", content=self._files[number])
            if answer.status_code == 200:
                self.wrong += answer.content != self._expected[answer.headers["x-cilseg-model"]][number][1]
        self.codes[str(answer.status_code)] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--swap-every", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the result")
    parser.add_argument("--serve", default="", help="further options of cilseg serve, in one text")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(Path(folder) / "registry")
        versions = [make_version(registry), second_version(registry, Path(folder))]
        rng = np.random.default_rng(asked.seed)
        arrays = [picture(rng)[:_SIDE_PX, :_SIDE_PX] for _ in range(6)]
        expected = {v.ref: answers(Segmenter(v.ref, registry=registry), arrays) for v in versions}
        if expected[versions[0].ref] == expected[versions[1].ref]:
            raise RuntimeError("both versions answer alike, so that a wrong one would not be noticed")
        server = Server(registry, asked.serve)
        clients = [Client(server, expected, arrays, asked.seed + i) for i in range(asked.clients)]
        begin = time.monotonic()
        until = begin + asked.seconds
        threads = [threading.Thread(target=c.run, args=(until,)) for c in clients]
        for thread in threads:
            thread.start()
        memory: list[tuple[float, float]] = []
        swaps, restarted, next_swap = 0, None, begin + asked.swap_every
        while time.monotonic() < until:
            time.sleep(1)
            if restarted is None and time.monotonic() > begin + asked.seconds / 2:
                server.kill()
                server.start()
                restarted = time.monotonic()
            if time.monotonic() >= next_swap:
                swaps += 1
                registry.promote(versions[swaps % 2].ref)
                next_swap += asked.swap_every
            memory.append((time.monotonic(), server.memory_mib()))
        for thread in threads:
            thread.join()
        server.process.terminate()
        code = server.process.wait(60)
    grown = growth([m for t, m in memory if restarted is None or t > restarted])
    codes = sum((c.codes for c in clients), Counter())
    summary = {
        "wrong_answers": float(sum(c.wrong for c in clients)),
        "unexpected_5xx": float(sum(c.unexpected for c in clients)),
        "memory_growth": round(grown, 4),
    }
    table = ["| answer | times |", "|---|---|", *(f"| {c} | {n} |" for c, n in sorted(codes.items()))]
    note = (
        f"{asked.seconds:g} s, {asked.clients} clients, {swaps} swaps, one kill -9, {HOSTILE:.0%} hostile requests; "
        f"exit code at the end {code}. unexpected_5xx counts lost connections too, except while the server was down."
    )
    print("\n".join([*table, note, json.dumps(summary)]))
    rows: list[dict[str, Any]] = [{"seconds": round(t - begin, 1), "memory_mib": round(m, 1)} for t, m in memory]
    if asked.record:
        write_record("serve_soak", command=COMMAND, rows=rows, summary=summary, table=table, note=note)
    if summary["wrong_answers"] or summary["unexpected_5xx"]:
        sys.exit(1)


def second_version(registry: Registry, folder: Path) -> Version:
    """Register a version that answers otherwise: the same graph before quantisation."""
    other = Registry.open(folder / "float")
    made = make_version(other, int8=False)
    bundle = folder / "second"
    bundle.mkdir()
    for name in made.manifest.files:
        os.link(made.path / name, bundle / name)
    write_manifest(bundle, made.manifest.model_copy(update={"seed": 1, "files": {}}))
    version = registry.register(NAME, bundle)
    model = other.attachment(made, "model.onnx").path
    registry.attach(version, "model.onnx", model, kind="onnx", metadata={"parity": {"passed": True}})
    return version


def answers(segmenter: Segmenter, arrays: list[Any]) -> list[tuple[bytes, bytes]]:
    """Return the mask of each array, and the PNG of each as JPEG."""
    return [(segmenter.segment(a).mask.tobytes(), embedded_jpeg(segmenter, jpeg(a))) for a in arrays]


def growth(memory: list[float]) -> float:
    """Return by how much the last fifth is above the second."""
    fifth = len(memory) // 5
    if not fifth:
        return float("nan")
    return statistics.median(memory[-fifth:]) / statistics.median(memory[fifth : 2 * fifth]) - 1


if __name__ == "__main__":
    main()
