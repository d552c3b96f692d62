"""What the tests of the server share: a registry of hand-made models, the application, and a real server process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from starlette.testclient import TestClient

from cilseg.bundle import write_manifest
from cilseg.classes import ClassSet
from cilseg.registry import Registry, Version
from cilseg_serve.server.app import make_app
from cilseg_serve.server.settings import ServerSettings
from tests.serve.tiny_model import CLASSES, make_manifest

NAME = "colours"
_START_S = 60
_PORT = re.compile(r"serving on http://[^ \"]+?:(\d+)")


def make_model(order: Sequence[int] = (0, 1, 2), *, confidence: bool = False, work: int = 0) -> bytes:
    """Return a model that answers ``1 + order.index(strongest channel)``, or 0 where all channels are under 100.

    ``work`` adds matrix products of that size, to make a run take time.
    """
    weight = np.zeros((3, 4), np.float32)
    for position, channel in enumerate(order):
        weight[channel, 1 + position] = 1
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["ids"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["mask" if not work else "plain"], to=TensorProto.UINT8),
    ]
    constants = {"weight": weight, "bias": np.array([100, 0, 0, 0], np.float32)}
    if work:
        rng = np.random.default_rng(0)
        constants["a"] = rng.standard_normal((work, work)).astype(np.float32)
        constants["nothing"] = np.zeros((), np.float32)
        nodes += [
            # the sum depends on the image, so that it cannot be folded into a constant
            helper.make_node("ReduceMax", ["pixels"], ["top"], keepdims=0),
            helper.make_node("Mul", ["a", "top"], ["b"]),
            helper.make_node("MatMul", ["b", "b"], ["c"]),
            helper.make_node("ReduceMax", ["c"], ["d"], keepdims=0),
            helper.make_node("Mul", ["d", "nothing"], ["e"]),
            helper.make_node("Cast", ["e"], ["zero"], to=TensorProto.UINT8),
            helper.make_node("Add", ["plain", "zero"], ["mask"]),
        ]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"])]
    if confidence:
        constants["last_axis"] = np.array([-1], np.int64)
        nodes += [
            helper.make_node("Softmax", ["logits"], ["probability"], axis=-1),
            helper.make_node("ReduceMax", ["probability", "last_axis"], ["confidence"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", "H", "W"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def expected_mask(image: npt.NDArray[np.uint8], order: Sequence[int] = (0, 1, 2)) -> npt.NDArray[np.uint8]:
    """What :func:`make_model` answers, computed another way."""
    scores = np.concatenate([np.full((*image.shape[:2], 1), 100), image[..., list(order)]], axis=2)
    return scores.argmax(axis=2).astype(np.uint8)


def register(
    registry: Registry,
    folder: Path,
    *,
    name: str = NAME,
    model: bytes | None = None,
    seed: int = 0,
    classes: ClassSet = CLASSES,
    short_side_px: int | None = None,
    parity: bool = True,
) -> Version:
    """Register a hand-made version; ``seed`` tells versions apart. The first of a name becomes production."""
    bundle = folder / f"bundle-{name}-{seed}"
    bundle.mkdir(parents=True)
    (bundle / "checkpoint.safetensors").write_bytes(b"never read here")
    manifest = make_manifest(short_side_px).model_copy(update={"seed": seed, "classes": classes.to_json()})
    write_manifest(bundle, manifest)
    version = registry.register(name, bundle)
    if model is not None:
        metadata = {"parity": {"passed": parity}}
        registry.attach(version, "model.onnx", model, kind="onnx", metadata=metadata)
    return version


def two_versions(folder: Path) -> Registry:
    """Make ``colours:1`` (production) and ``colours:2``, which swaps red and blue."""
    made = Registry.open(folder / "registry")
    register(made, folder, model=make_model(), seed=1)
    register(made, folder, model=make_model((2, 1, 0), confidence=True), seed=2)
    made.promote("colours:1")
    return made


@contextlib.contextmanager
def opened(registry: Registry, **settings: Any) -> Iterator[TestClient]:
    """Start the application in this process."""
    settings = {"refs": ("colours",), "poll_s": 0.05, "threads": 1, **settings}
    app = make_app(ServerSettings(**settings), registry=registry)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def picture(height: int = 24, width: int = 30, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image ``(height, width, 3)`` in which every answer occurs."""
    rng = np.random.default_rng(seed)
    blocks = np.array([(200, 20, 10), (10, 210, 30), (5, 15, 220), (0, 0, 0)], np.uint8)
    ids = rng.integers(0, 4, (height // 4 + 1, width // 4 + 1))
    return blocks[np.kron(ids, np.ones((4, 4), np.int64))[:height, :width]]


def encoded(image: npt.NDArray[np.uint8], format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format)
    return buffer.getvalue()


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    """The ids of a class map."""
    return np.array(Image.open(io.BytesIO(data)))


@dataclass
class Process:
    """A running ``cilseg serve``."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> list[dict[str, object]]:
        """The JSON lines written so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running(registry: Path, *arguments: object, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run ``cilseg serve`` on a free port as a process of its own."""
    command = [sys.executable, "-m", "cilseg.cli.main", "serve", "--port", "0", "--registry", str(registry)]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    lines: list[str] = []
    found: list[int] = []
    started = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if (match := _PORT.search(line)) and not found:
                found.append(int(match[1]))
                started.set()
        started.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert started.wait(_START_S), lines
        assert found, "\n".join(lines)
        yield Process(process, found[0], lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
