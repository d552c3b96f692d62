"""The example application, and the code of the page on embedding, run as they stand against a hand-made model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.bundle import write_manifest
from cilseg.registry import Registry
from tests.serve.tiny_model import make_manifest, make_onnx

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "outlines.py"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a registry that holds ``shapes``, and two scenes."""
    (tmp_path / "bundle").mkdir()
    registry = Registry.open(tmp_path / "cilseg-registry")
    for number in (1, 2):
        (tmp_path / "bundle" / "checkpoint.safetensors").write_bytes(bytes([number]))
        write_manifest(tmp_path / "bundle", make_manifest(seed=number))
        version = registry.register("shapes", tmp_path / "bundle")
        model = make_onnx(logits=True)
        registry.attach(version, "model.onnx", model, kind="onnx", metadata={"parity": {"passed": True}})
    registry.promote("shapes:2", alias="candidate")
    scenes = tmp_path / "scenes" / "images"
    scenes.mkdir(parents=True)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[10:20, 30:50, 1] = 200
    for name in ("val_00000.png", "val_00001.png"):
        Image.fromarray(pixels).save(scenes / name)
    return tmp_path


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )


def test_example_application(world: Path) -> None:
    (world / "scenes" / "images" / "notes.txt").write_text("no image")
    done = run([str(EXAMPLE), "shapes@candidate", "scenes/images"], world)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("skipped scenes/images/notes.txt: not an image")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == ["val_00000.png", "val_00001.png"]
    assert rows[0]["outlines"] == [["green", [[30, 10], [50, 10], [50, 20], [30, 20]]]]
    assert rows[0]["coverage"]["green"] == pytest.approx(200 / (48 * 64))
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) <= 21


def test_code_of_the_page_on_embedding(world: Path) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    blocks = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        done = run(["-c", block], world)
        assert done.returncode == 0, done.stderr
    assert (world / "mask.png").is_file()
