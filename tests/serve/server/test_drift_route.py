"""Drift over HTTP and on the command line, against references that are there or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_world import encoded, expected_mask, make_model, picture
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cilseg.bundle import GateSet, write_manifest
from cilseg.cli.main import app
from cilseg.data.source import open_source
from cilseg.registry import Registry
from cilseg_serve.drift import FEATURES
from cilseg_serve.server import drift_watch
from tests.serve.tiny_model import make_manifest


def images(folder: Path, count: int, *, dark: bool = False) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = picture(32, 40, seed=i) // (3 if dark else 1)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def judged(tmp_path: Path) -> Registry:
    """``colours:1`` with a gate set of 40 images."""
    data = tmp_path / "data"
    images(data / "images", 40)
    (data / "masks").mkdir()
    for file in (data / "images").iterdir():
        Image.fromarray(np.zeros((32, 40), np.uint8)).save(data / "masks" / file.name)
    (data / "val.txt").write_text("".join(f"{i:03}\n" for i in range(40)))
    (data / "labels.txt").write_text("background\nred\ngreen\nblue\n")
    source = open_source(data, split="val", label_names={0: "background", 1: "red", 2: "green", 3: "blue"})
    gate_set = GateSet(
        root=str(data),
        split="val",
        label_names=dict(source.label_names),
        classes=("red", "green", "blue"),
        ids_sha256=source.fingerprint()["ids_sha256"],
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "checkpoint.safetensors").write_bytes(b"never read here")
    write_manifest(bundle, make_manifest().model_copy(update={"gate_set": gate_set}))
    registry = Registry.open(tmp_path / "registry")
    version = registry.register("colours", bundle, alias="production")
    model = make_model(confidence=True)
    registry.attach(version, "model.onnx", model, kind="onnx", metadata={"parity": {"passed": True}})
    return registry


def run(registry: Registry, *arguments: object) -> Any:
    return CliRunner().invoke(app, ["drift", *map(str, arguments), "--registry", str(registry.root), "--threads", "1"])


def test_on_the_command_line(judged: Registry, tmp_path: Path) -> None:
    made = run(judged, "colours")
    assert made.exit_code == 0, made.output
    assert "reference of 40 images" in made.stdout
    content = json.loads(judged.attachment(judged.resolve("colours"), "drift.json").path.read_text())
    assert len(content["shares"]) == 40
    assert set(content["features"]) == set(FEATURES)
    same = run(judged, "colours", images(tmp_path / "same", 40), "--json")
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["status"] == "stable"
    dark = run(judged, "colours", images(tmp_path / "dark", 40, dark=True), "--json")
    assert dark.exit_code == 1
    drifted = {s["name"] for s in json.loads(dark.stdout)["signals"] if s["drifted"]}
    assert {"class_mix", "brightness"} <= drifted
    table = run(judged, "colours", tmp_path / "dark")
    assert table.exit_code == 1
    assert "Drift in class_mix" in table.stdout


def test_over_http(judged: Registry, open_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_watch, "_PER_S", 1e9)
    monkeypatch.setattr(drift_watch, "_FRESH_S", 0.0)
    run(judged, "colours")
    client: TestClient = open_on(judged)
    (empty,) = client.get("/v1/drift").json()
    assert (empty["status"], empty["images"]) == ("too_few", 0)
    for i in range(40):
        client.post("/v1/segment", content=encoded(picture(32, 40, seed=i)))
    (same,) = client.get("/v1/drift", params={"model": "colours"}).json()
    assert (same["status"], same["images"], same["reference_images"]) == ("stable", 40, 40)
    for i in range(200):
        client.post("/v1/segment", content=encoded(picture(32, 40, seed=i) // 3))
    (dark,) = client.get("/v1/drift").json()
    assert dark["status"] == "drift"
    assert 'cilseg_drift_ratio{model="colours",signal="class_mix",version="1"}' in client.get("/metrics").text
    assert client.get("/v1/drift?model=cats").status_code == 404


def test_the_class_mix_of_the_last_evaluation_will_do(
    registry: Registry, open_on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(drift_watch, "_PER_S", 1e9)
    (without,) = open_on(registry).get("/v1/drift").json()
    assert without["status"] == "no_reference"
    assert "cilseg drift colours:1" in without["sentence"]
    masks = [np.bincount(_ids(i).ravel(), minlength=4) for i in range(40)]
    confusions = np.zeros((40, 4, 4), np.int64)
    confusions[:, 0, :] = masks
    np.savez(tmp_path / "c.npz", ids=np.arange(40).astype(str), confusions=confusions)
    registry.attach(registry.resolve("colours:1"), "confusions.npz", tmp_path / "c.npz", kind="confusions")
    client = open_on(registry)
    for i in range(40):
        client.post("/v1/segment", content=encoded(picture(32, 40, seed=i)))
    (report,) = client.get("/v1/drift").json()
    assert report["status"] == "stable"
    assert [s["name"] for s in report["signals"]] == ["class_mix"]


def _ids(seed: int) -> Any:
    return expected_mask(picture(32, 40, seed=seed))
