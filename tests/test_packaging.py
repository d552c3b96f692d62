"""The wheel holds all three packages and the presets, and finds them once unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_packages_presets_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "cilseg/cli/main.py",
        "cilseg/configs/tiny.yaml",
        "cilseg/configs/mobilenetv2.yaml",
        "cilseg/configs/protocols/published.yaml",
        "cilseg/configs/protocols/voc-15-5.yaml",
        "cilseg/evaluate/templates/gate.html.j2",
        "cilseg/evaluate/templates/protocol.html.j2",
        "cilseg/py.typed",
        "cilseg_export/onnx_export.py",
        "cilseg_export/py.typed",
        "cilseg_serve/segmenter.py",
        "cilseg_serve/py.typed",
        "cilseg_serve/web/index.html",
        "cilseg_serve/web/main.js",
        "cilseg_serve/web/page.css",
    ):
        assert wanted in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "export/", "serve/"))]


def test_unpacked_wheel_finds_its_presets(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import cilseg.config as c; print(c.configs_directory()); print(c.preset_names()); c.load_config('tiny'); "
        "import cilseg.bench.config as b; b.load_protocol('voc-15-5')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert str(tmp_path / "cilseg" / "configs") in done.stdout
    assert "mobilenetv2" in done.stdout


def test_checkout_finds_its_presets() -> None:
    from cilseg.config import configs_directory, preset_names

    assert configs_directory() == ROOT / "configs"
    assert {"tiny", "mobilenetv2"} <= set(preset_names())
