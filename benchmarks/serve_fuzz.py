"""Whether hostile requests break the server: python -m benchmarks.serve_fuzz

Sends mutated images, broken binary tensors, broken JSON and random requests to every route of the OpenAPI document,
from several clients at one time, and counts answers of 5xx, hangs and crashes; every minute a good one must be answered
right. Where schemathesis is installed, it runs against the same server afterwards. Everything is drawn from ``--seed``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.record import write_record
from benchmarks.serve_model import make_version
from benchmarks.serve_throughput import binary_body, embedded_jpeg, jpeg, picture, serving
from cilseg.registry import Registry
from cilseg_serve import Segmenter

COMMAND = "python -m benchmarks.serve_fuzz"
HANG_S = 60.0
_TEXTS = (
    "",
    "..",
    "../../etc/passwd",
    "%2e%2e%2f",
    "\x00",
    "a" * 5000,
    "1",
    "-1",
    "99999999999",
    "null",
    "ü",
    "{}",
    "resnet18",
)
_VALUES: Sequence[Any] = (None, True, -1, 0, 1, 2**63, 1e308, "", "x", "../..", [], {}, [[]], {"a": []}, "a" * 10_000)


class Fuzzer:
    """One client: draws requests and notes what came back."""

    def __init__(
        self, port: int, document: dict[str, Any], files: Sequence[bytes], array: np.ndarray, seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S)
        self._port, self._files = port, files
        self._infer = binary_body("resnet18", array[:64, :64])
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self.codes: Counter[str] = Counter()
        self.bad: list[dict[str, Any]] = []

    def run(self, count: int) -> None:
        kinds = (self.image, self.tensor, self.route, self.connection)
        for _ in range(count):
            kind = kinds[self._rng.choice(4, p=(0.3, 0.35, 0.3, 0.05))]
            try:
                code = kind()
            except httpx.TimeoutException:
                code = "hang"
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as error:
                code = f"client: {type(error).__name__}"
            self.codes[str(code)] += 1
            if str(code) == "hang" or (isinstance(code, int) and code >= 500 and code not in (503, 504)):
                self.bad.append({"kind": kind.__name__, "code": str(code)})

    def image(self) -> int:
        """An image file with some bytes changed, cut, or doubled, to one of the routes that decode images."""
        data = self._mutate(self._files[self._rng.integers(len(self._files))])
        if self._rng.random() < 0.5:
            return self._client.post("/v1/segment", content=data, params=self._query()).status_code
        headers = {"Inference-Header-Content-Length": "0"}
        return self._client.post("/v2/models/resnet18/infer", content=data, headers=headers).status_code

    def tensor(self) -> int:
        """An ``/infer`` request whose JSON, lengths or bytes are wrong somewhere."""
        path, headers, body = self._infer
        length = int(headers["Inference-Header-Content-Length"])
        head, blob = json.loads(body[:length]), body[length:]
        where = self._rng.integers(6)
        if where == 0:
            self._change(head)
        elif where == 1:
            blob = blob[: self._rng.integers(len(blob))]
        elif where == 2:
            self._change(head["inputs"][0])
        elif where == 3:
            self._change(head["inputs"][0]["parameters"])
        text = json.dumps(head).encode()
        if where == 4:
            text = self._mutate(text)
        stated = str(len(text)) if where != 5 else str(_TEXTS[self._rng.integers(len(_TEXTS))])
        with contextlib.suppress(UnicodeEncodeError):
            stated.encode("ascii")
            return self._client.post(
                path, content=text + blob, headers={"Inference-Header-Content-Length": stated.strip("\x00")[:50]}
            ).status_code
        return 0

    def route(self) -> int:
        """Any route with strange parameters and a strange body."""
        method, path, operation = self._operations[self._rng.integers(len(self._operations))]
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(self._text()))
        query = {
            p["name"]: str(self._text())
            for p in operation.get("parameters", ())
            if p["in"] == "query" and self._rng.random() < 0.5 and p["name"] != "follow"
        }
        path = path.replace("{", "").replace("}", "").replace("\x00", "%00")
        body: Any = None
        if method in ("POST", "PUT"):
            body = (
                self._mutate(json.dumps(self._json(3)).encode())
                if self._rng.random() < 0.3
                else json.dumps(self._json(3)).encode()
            )
        headers = {"Content-Type": "application/json"} if self._rng.random() < 0.7 else {}
        return self._client.request(method, path, params=query, content=body, headers=headers).status_code

    def connection(self) -> int:
        """Bytes that are no HTTP, or a request that stops."""
        data = self._mutate(b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n0123456789")
        with socket.create_connection(("127.0.0.1", self._port), HANG_S) as raw:
            raw.settimeout(HANG_S)
            with contextlib.suppress(OSError):
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                answer = raw.recv(4096)
                if answer.startswith(b"HTTP/1.1 "):
                    return int(answer[9:12])
        return 0

    def _mutate(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(int(self._rng.integers(1, 8))):
            if not changed:
                break
            at = int(self._rng.integers(len(changed)))
            what = self._rng.integers(4)
            if what == 0:
                changed[at] = int(self._rng.integers(256))
            elif what == 1:
                del changed[at : at + int(self._rng.integers(1, 64))]
            elif what == 2:
                changed[at:at] = self._rng.bytes(int(self._rng.integers(1, 16)))
            else:
                changed[at : at + 4] = int(self._rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80])).to_bytes(4, "big")
        return bytes(changed)

    def _change(self, holder: dict[str, Any]) -> None:
        key = list(holder)[self._rng.integers(len(holder))] if holder else "x"
        if self._rng.random() < 0.3:
            holder.pop(key, None)
        else:
            holder[key] = self._json(2)

    def _json(self, depth: int) -> Any:
        if depth and self._rng.random() < 0.6:
            keys = (
                "inputs",
                "tags",
                "tag_list",
                "options",
                "image_root",
                "images",
                "file",
                "version",
                "parameters",
                "x",
            )
            if self._rng.random() < 0.5:
                return [self._json(depth - 1) for _ in range(int(self._rng.integers(4)))]
            return {
                keys[self._rng.integers(len(keys))]: self._json(depth - 1) for _ in range(int(self._rng.integers(4)))
            }
        return copy.deepcopy(_VALUES[self._rng.integers(len(_VALUES))])

    def _text(self) -> str:
        return str(_TEXTS[self._rng.integers(len(_TEXTS))])

    def _query(self) -> dict[str, str]:
        names = ("format", "model", "version", "confidence", "mask")
        return {n: self._text() for n in names if self._rng.random() < 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the result")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(Path(folder) / "registry")
        version = make_version(registry)
        images = Path(folder) / "images"
        images.mkdir()
        rng = np.random.default_rng(asked.seed)
        arrays = [picture(rng)[:96, :128] for _ in range(4)]
        for number, array in enumerate(arrays):
            (images / f"{number}.jpg").write_bytes(jpeg(array))
        files = [jpeg(a) for a in arrays] + [png(a) for a in arrays]
        segmenter = Segmenter(version.ref, registry=registry)
        with serving(registry, version.ref, f"--images photos={images}") as port:
            document = httpx.get(f"http://127.0.0.1:{port}/openapi.json").json()
            per_client = -(-asked.requests // asked.clients)
            fuzzers = [Fuzzer(port, document, files, picture(rng), asked.seed + i) for i in range(asked.clients)]
            threads = [threading.Thread(target=f.run, args=(per_client,)) for f in fuzzers]
            for thread in threads:
                thread.start()
            wrong = 0
            while any(t.is_alive() for t in threads):
                threads[0].join(60)
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=files[0], timeout=HANG_S)
                wrong += answer.status_code == 200 and answer.content != embedded_jpeg(segmenter, files[0])
            schemathesis_code, ran_schemathesis = schemathesis(port, Path(folder))
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=files[0], timeout=HANG_S)
            wrong += answer.content != embedded_jpeg(segmenter, files[0])
    codes = sum((f.codes for f in fuzzers), Counter())
    bad = [b for f in fuzzers for b in f.bad]
    summary = {
        "requests": float(sum(codes.values())),
        "server_errors": float(len(bad)),
        "wrong_answers": float(wrong),
        "schemathesis_exit_code": schemathesis_code,
    }
    table = ["| answer | times |", "|---|---|", *(f"| {code} | {count} |" for code, count in sorted(codes.items()))]
    note = (
        f"schemathesis: {ran_schemathesis}. 503 and 504 are what a full server answers; they are listed, not counted. "
        "0: bytes that are no HTTP, closed without an answer, or a header that cannot be sent."
    )
    print("\n".join([*table, note, json.dumps(summary), json.dumps(bad[:20])]))
    if asked.record:
        write_record("serve_fuzz", command=COMMAND, rows=bad[:100], summary=summary, table=table, note=note)
    if bad or wrong or schemathesis_code:
        sys.exit(1)


def png(array: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def schemathesis(port: int, folder: Path) -> tuple[float | None, str]:
    """Run schemathesis in ``folder`` where it is installed; return its exit code, and what it said in the end."""
    if importlib.util.find_spec("schemathesis") is None:
        return None, "not installed, not run"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"]
    command += ["--checks", "not_a_server_error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    said = [line.strip(" =") for line in done.stdout.splitlines() if line.strip()]
    cases = next((line for line in said if "generated" in line and "passed" in line), "")
    return float(done.returncode), "; ".join(filter(None, [f"exit code {done.returncode}", cases, *said[-1:]]))


if __name__ == "__main__":
    main()
