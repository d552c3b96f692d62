"""``cilseg export --precision``: lower precision of the story's model, attached with its verdict, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from cli_story import Commands, Contents, Story

from cilseg.registry import Registry

LOOSE = """
float32: {}
float16: {max_tied: 0.1, max_differing: 0.1, min_agreement: 0.9, max_miou_drop: 5.0, max_class_drop: 10.0}
int8: {max_tied: 0.1, max_differing: 0.6, min_agreement: 0.5, max_miou_drop: 10.0, max_class_drop: 25.0}
"""


@pytest.fixture
def loose(cilseg: Commands) -> str:
    """Limits for a network that was trained for seconds; the default ones are tested on graphs with known answers."""
    (cilseg.cwd / "loose.yaml").write_text(LOOSE)
    return "loose.yaml"


def test_float16_and_int8_are_attached_with_their_verdicts(cilseg: Commands, registry: Path, loose: str) -> None:
    half = cilseg("export", "shapes:1", "--precision", "fp16", "--limits", loose, "--json")
    assert half.code == 0, half.err
    assert Path(half.json()["model"]).name == "model.fp16.onnx"
    int8 = cilseg(
        *("export", "shapes:1", "--precision", "int8", "--limits", loose, "--calibration-method", "percentile"),
        *("--calibration-images", 6, "-o", "small.onnx"),
    )
    assert int8.code == 0, int8.err
    assert int8.out == "small.onnx\n"
    assert "layers stay float" in int8.err
    assert "points lower, at most" in int8.err
    held = Registry.open(registry)
    version = held.resolve("shapes:1")
    attached = held.attachments(version)
    assert {
        *("model.onnx", "parity.json", "model.fp16.onnx", "parity.fp16.json", "parity_worst.fp16.png"),
        *("model.int8.onnx", "parity.int8.json", "parity_worst.int8.png", "sensitivity.int8.json"),
    } <= set(attached)
    for name in ("model.fp16.onnx", "model.int8.onnx"):
        verdict = held.attachment(version, name).metadata["parity"]
        assert verdict["passed"] is True
        assert verdict["accuracy"]["worst_class"] in version.manifest.class_set
    assert (cilseg.cwd / "small.onnx").read_bytes() == attached["model.int8.onnx"].path.read_bytes()
    record = held.attachment(version, "model.int8.onnx").metadata["int8"]
    assert record["method"] == "percentile"
    assert len(record["calibration"]["images"]) == 6
    assert verdict["accuracy"]["images"] == 24 - 6
    sensitivity = json.loads(attached["sensitivity.int8.json"].path.read_text())
    assert len(sensitivity["sensitivity"]) == record["layers"] - record["classifiers_in_float"]


def test_calibration_without_a_class_is_refused(
    story: Story, cilseg: Commands, registry: Path, contents: Contents
) -> None:
    folder = cilseg.cwd / "calibration"
    for name in ("starfish", "boat"):
        (folder / name).mkdir(parents=True)
        shutil.copy(story.scenes / "images" / "val_00000.png", folder / name / f"{name}.png")
    tags = {"schema": "cilseg.tags/1", "images": [{"file": "boat.png", "present": ["boat"]}]}
    tags["images"][0]["absent"] = ["starfish", "house", "lifebuoy", "leaf", "mushroom"]  # type: ignore[index]
    (folder / "boat" / "tags.json").write_text(json.dumps(tags))
    before = contents(registry)
    answer = cilseg("export", "shapes:1", "--precision", "int8", "--calibration", folder / "boat" / "tags.json")
    assert answer.code == 2
    assert "class 'starfish' is in none of the 1 images" in answer.err
    assert "'boat'" not in answer.err
    (folder / "zebra").mkdir()
    answer = cilseg("export", "shapes:1", "--precision", "int8", "--calibration", folder)
    assert answer.code == 2
    assert "zebra is no class of the model" in answer.err
    answer = cilseg("export", "shapes:1", "--precision", "int8", "--calibration", "nowhere")
    assert answer.code == 2
    assert "nowhere does not exist. Calibrate with a tag list (JSON) or a folder of images." in answer.err
    assert contents(registry) == before


def test_an_edited_file_and_one_of_another_version_are_refused(cilseg: Commands, registry: Path) -> None:
    held = Registry.open(registry)
    version = held.resolve("shapes:1")
    attached = held.attachment(version, "model.onnx")
    model = onnx.load(attached.path)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
    genuine = attached.path.read_bytes()
    attached.path.write_bytes(model.SerializeToString())
    answer = cilseg("export", "shapes:1", "--precision", "fp16")
    assert answer.code == 5
    assert "'model.onnx' of shapes:1 is damaged" in answer.err
    attached.path.write_bytes(genuine)

    other = Registry.open(registry).resolve("shapes:2")
    held.attach(other, "model.onnx", attached.path, kind="onnx", metadata=dict(attached.metadata))
    answer = cilseg("export", "shapes:2", "--precision", "int8")
    assert answer.code == 5
    assert f"says that it was exported from {version.digest[:19]}..., this version is {other.digest[:19]}" in answer.err

    held.attach(version, "model.onnx", attached.path, kind="onnx", metadata={"export": attached.metadata["export"]})
    answer = cilseg("export", "shapes:1", "--precision", "fp16")
    assert answer.code == 5
    assert "no passed parity check on record. Export it again: cilseg export shapes:1" in answer.err
    assert "model.fp16.onnx" not in held.attachments(version)


def test_limits_that_cannot_hold_end_with_code_4_and_attach_nothing(
    cilseg: Commands, registry: Path, contents: Contents
) -> None:
    no_label = "float16: {tie_margin: 0, max_tied: 0, max_differing: 0, min_agreement: 1.0}"
    (cilseg.cwd / "strict.yaml").write_text(f"float32: {{}}\n{no_label}\nint8: {{}}\n")
    before = contents(registry)
    answer = cilseg("export", "shapes:1", "--precision", "fp16", "--limits", "strict.yaml")
    assert answer.code == 4, answer.err
    assert "model.fp16.onnx does not give the network's answers within the limits of float16" in answer.err
    kept = cilseg.cwd / "parity-shapes-1"
    assert {"parity.fp16.json", "parity_worst.fp16.png", "reproduce.py", "model.fp16.onnx"} <= {
        p.name for p in kept.iterdir()
    }
    assert contents(registry) == before


def test_outputs_that_the_float_file_lacks_are_refused(cilseg: Commands, registry: Path) -> None:
    assert registry.is_dir()
    answer = cilseg("export", "shapes:1", "--precision", "fp16", "--confidence")
    assert answer.code == 2
    assert "shapes:1 was exported with mask; a lower precision has the outputs of model.onnx" in answer.err


def test_compat_is_attached_beside(cilseg: Commands, registry: Path) -> None:
    answer = cilseg("export", "shapes:1", "--compat", "--compat-size", 64)
    assert answer.code == 0, answer.err
    assert "For other readers: " in answer.err
    held = Registry.open(registry)
    attached = held.attachment(held.resolve("shapes:1"), "model.compat.onnx")
    assert attached.metadata["parity"]["passed"] is True
    props = {p.key: p.value for p in onnx.load(attached.path).metadata_props}
    assert props["model_info model_type"] == "Segmentation"
    assert props["imgsz"] == "[64, 64]"
    answer = cilseg("export", "shapes:1", "--compat", "--compat-size", 100)
    assert answer.code == 2
    assert "multiple of 8" in answer.err


def test_unknown_limits(cilseg: Commands, registry: Path) -> None:
    assert registry.is_dir()
    answer = cilseg("export", "--limits", "defualt")
    assert answer.code == 2
    assert "Unknown parity limits 'defualt'. Did you mean 'default'?" in answer.err
