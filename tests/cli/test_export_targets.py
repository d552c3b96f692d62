"""``cilseg export --trt/--triton``, ``cilseg predict --backend`` and ``cilseg bench latency`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_story import Commands, Story

pytestmark = pytest.mark.usefixtures("registry")


def test_a_triton_repository_is_written_and_told(cilseg: Commands) -> None:
    answer = cilseg("export", "shapes:1", "--triton", "models", "--triton-backend", "python")
    assert answer.code == 0, answer.err
    assert answer.out == "models/shapes\n"
    assert "Triton serves version 1 of shapes (there are 1). Start it with: tritonserver" in answer.err
    folder = cilseg.cwd / "models" / "shapes"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "config.pbtxt",
        "labels_1.txt",
        "1/model.py",
        "1/model.onnx",
    }
    payload = cilseg("export", "shapes:1", "--triton", "models", "--json").json()
    assert payload["triton"]["served"] == 1


def test_an_engine_is_refused_where_there_is_no_tensorrt(cilseg: Commands) -> None:
    answer = cilseg("export", "shapes:1", "--trt")
    assert answer.code == 1
    assert "TensorRT is not installed here" in answer.err
    assert "pip install 'cilseg[tensorrt]'" in answer.err
    checked = cilseg("export", "shapes:1", "--trt", "--verify")
    assert checked.code == 4
    words = [line.split()[0] for line in checked.out.splitlines() if line.strip()]
    assert [w for w in words if w in ("pass", "FAIL")] == ["FAIL"] * 10
    assert "The self-check failed: TensorRT imports" in checked.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "--verify"), "--verify checks what --trt builds"),
        (("export", "--trt", "--trt-hardware", "ampere"), "'ampere' is not known. Did you mean 'ampere-plus'?"),
        (("export", "--triton", "m", "--triton-backend", "onxruntime"), "Did you mean 'onnxruntime'?"),
        (("predict", "x", "-o", "out", "--backend", "openvno"), "no backend 'openvno'. Did you mean 'openvino'?"),
        (("bench", "latency", "shapes:1", "--size", "512"), "'512' is no size. Write width x height"),
        (("bench", "latency", "shapes:1", "--backend", "tensort"), "no backend 'tensort'. Did you mean 'tensorrt'?"),
        (("bench", "latency", "shapes:9"), "There is no version shapes:9"),
    ],
)
def test_wrong_options_are_refused_in_words(cilseg: Commands, arguments: tuple[str, ...], says: str) -> None:
    answer = cilseg(*arguments)
    assert answer.code == 2
    assert says in answer.err


def test_predictions_agree_between_backends(story: Story, cilseg: Commands) -> None:
    image = story.scenes / "images" / "val_00000.png"
    summaries = []
    for backend in ("onnxruntime", "openvino"):
        answer = cilseg("predict", image, "-o", backend, "--model", "shapes:1", "--backend", backend, "--json")
        assert answer.code == 0, answer.err
        summaries.append(answer.json()["images"][0]["coverage"])
    assert summaries[0] == pytest.approx(summaries[1], abs=0.002)


def test_latency_is_measured_and_written(cilseg: Commands) -> None:
    arguments = ("--size", "64x48", "--repeats", 2, "--images", 3, "--no-memory", "-o", "speed")
    answer = cilseg("bench", "latency", "shapes:1", *arguments)
    assert answer.code == 0, answer.err
    for name in ("torch-eager", "onnxruntime", "openvino", "64x48"):
        assert name in answer.out
    payload = json.loads((cilseg.cwd / "speed" / "latency.json").read_text())
    assert payload["version"] == "shapes:1"
    assert {row["height"] for row in payload["rows"]} == {48}
    assert (Path(cilseg.cwd) / "speed" / "latency.svg").is_file()
