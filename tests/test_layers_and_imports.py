"""What an import or a look at the help must not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "timm", "torchvision", "lightning_fabric", "onnx", "onnxruntime", "tensorrt")


def loaded_after(code: str) -> set[str]:
    """Run ``code`` in a fresh interpreter and return the heavy packages that it loaded."""
    report = f"\nimport sys; print('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import cilseg, cilseg.errors, cilseg.classes, cilseg.bundle",
        "import cilseg.registry",
        "import cilseg_serve\ncilseg_serve.Segmenter",
        "import cilseg.config\ncilseg.config.load_config('tiny')",
        "import cilseg.bench.config",
        "import cilseg_serve.server.app, cilseg_serve.server.process, cilseg_serve.drift_reference",
    ],
)
def test_imports_without_torch(code):
    assert not loaded_after(code) & set(HEAVY) - ({"onnxruntime"} if "Segmenter" in code else set())


def test_the_probe_can_fail():
    assert loaded_after("import onnxruntime") == {"onnxruntime"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["update", "--help"],
        ["list", "--help"],
        ["serve", "--help"],
        ["bench", "protocol", "--help"],
    ],
)
def test_help_without_torch(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['cilseg', *{arguments!r}]\n"
        "from cilseg.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
    )
    assert not loaded_after(code)


@pytest.mark.parametrize(("verb", "package", "extra"), [("train", "torch", "train"), ("export", "torch", "train")])
def test_a_missing_extra_is_named_instead_of_a_traceback(tmp_path: Path, verb: str, package: str, extra: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    arguments = {"train": ["x", "--data", str(tmp_path), "--config", "tiny"], "export": ["x:1"]}[verb]
    done = subprocess.run(
        [sys.executable, "-m", "cilseg.cli.main", verb, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"needs {package}" in done.stderr
    assert f"cilseg[{extra}]" in done.stderr
