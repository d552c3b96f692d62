"""Batch inference on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.bundle import write_manifest
from cilseg_serve import Segmenter, predict_paths
from tests.serve.tiny_model import make_manifest, make_onnx, write_attachment

pytestmark = pytest.mark.systems
ray = pytest.importorskip("ray", reason="needs pip install 'cilseg[ray]'")


@pytest.fixture
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_two_nodes_give_what_one_process_gives(address: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "checkpoint.safetensors").write_bytes(b"")
    digest = write_manifest(bundle, make_manifest()).digest
    write_attachment(bundle, digest, make_onnx(), {"parity": {"passed": True}})
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / "05-broken.png").write_bytes(b"no image")
    predict_paths(Segmenter(bundle), [folder], tmp_path / "local", formats=["png", "coco"])

    command = [sys.executable, "-m", "cilseg.cli.main", "predict", "photos", "-m", "./bundle", "-o", "ray", "--quiet"]
    command += ["-f", "png", "-f", "coco", "--engine", "ray", "--workers", "2"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert "skipped: photos/05-broken.png: not an image" in done.stderr
    local, cluster = tmp_path / "local", tmp_path / "ray"
    names = sorted(p.relative_to(local).as_posix() for p in local.rglob("*.*") if p.suffix in (".png", ".jpg"))
    assert len(names) == 24
    for name in names:
        assert (cluster / name).read_bytes() == (local / name).read_bytes()
    one, two = (json.loads((p / "summary.json").read_text()) for p in (local, cluster))
    assert [i["mask"] for i in two["images"]] == [i["mask"] for i in one["images"]]
    assert [i["coverage"] for i in two["images"]] == [i["coverage"] for i in one["images"]]
    annotations = [json.loads((p / "coco.json").read_text())["annotations"] for p in (local, cluster)]
    assert annotations[0] == annotations[1]

    (cluster / "masks/03.png").unlink()
    before = (cluster / "masks/04.png").stat().st_mtime_ns
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert again.returncode == 1, again.stderr
    assert (cluster / "masks/03.png").read_bytes() == (local / "masks/03.png").read_bytes()
    assert (cluster / "masks/04.png").stat().st_mtime_ns == before
