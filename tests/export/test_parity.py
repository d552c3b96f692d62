"""The parity check: passes a good export, fails a damaged one with words, numbers and a picture."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
import torch
from export_stand_in import CLASSES, make_graph, make_image
from PIL import Image
from pydantic import ValidationError

from cilseg.errors import ArtifactError, InputError, ParityError
from cilseg_export.comparison import compare
from cilseg_export.limits import ParityLimits
from cilseg_export.parity import check_parity, parity_sizes
from cilseg_export.runtime import OnnxRuntime
from cilseg_export.torch_session import Reference

IMAGES = [make_image(60, 80, seed=1), make_image(75, 51, seed=2)]


class Meddling:
    """A runtime that answers like the good one, except for what ``meddle`` does to its outputs."""

    def __init__(self, path, meddle):
        self._inner, self._meddle = OnnxRuntime(path), meddle
        self.outputs, self.description = self._inner.outputs, {"runtime": "meddling", "version": "1"}

    def run(self, images):
        return self._meddle({name: array.copy() for name, array in self._inner.run(images).items()})


def test_sizes_are_three_with_an_odd_one_and_one_off_the_grid():
    for height, width in ((240, 320), (375, 500), (128, 128), (33, 17), (5, 900)):
        own, odd, uneven = parity_sizes(height, width)
        assert own == (height, width)
        assert odd[0] % 2 == odd[1] % 2 == 1
        assert uneven[0] % 16
        assert uneven[1] % 16
        assert len({own, odd, uneven}) == 3


def test_a_good_export_passes_alone_and_in_batches(exported, tmp_path):
    report = check_parity(exported.graph, exported.path, IMAGES, out_dir=tmp_path / "new", ids=["a.jpg", "b.jpg"])
    report.raise_if_failed()
    cases = {(c.image, c.size_hw, c.batch) for c in report.cases}
    for name, image in zip(("a.jpg", "b.jpg"), IMAGES, strict=True):
        assert {(name, size, 1) for size in parity_sizes(*image.shape[:2])} <= cases
    for name in ("a.jpg", "b.jpg", "a.jpg (mirrored)"):
        assert {(name, size, 3) for size in parity_sizes(60, 80)} <= cases
    for turn in ("", " (mirrored)", " (upside down)"):
        for name in ("a.jpg", "b.jpg"):
            assert {(name + turn, size, 8) for size in parity_sizes(60, 80)} <= cases
    assert len(report.cases) == 6 + 9 + 24
    assert all(c.differing == 0 and c.agreement == 1.0 and c.logit_error < 1e-5 for c in report.cases)
    written = json.loads(report.json_path.read_text(encoding="utf-8"))
    assert written["schema"] == "cilseg.parity/1"
    assert written["passed"] is True
    assert written["summary"]["comparisons"] == len(written["cases"]) == 39
    assert written["version"] == exported.manifest.digest
    assert written["artifact_sha256"] == exported.record.sha256
    assert written["summary"]["runtime"]["runtime"] == "onnxruntime"
    assert str(tmp_path) not in json.dumps(written)


def test_a_file_with_the_mask_alone_is_checked_against_the_same_network(exported_mask, tmp_path):
    report = check_parity(exported_mask.graph, exported_mask.path, IMAGES[:1], out_dir=tmp_path)
    assert report.passed
    assert {c.logit_error for c in report.cases} == {None}


def test_a_changed_bias_fails_with_exit_code_4_and_a_picture(exported, tmp_path):
    model = onnx.load(exported.path)
    (bias,) = [t for t in model.graph.initializer if t.name.endswith("classifier.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[2] += 1.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    report = check_parity(exported.graph, tmp_path / "broken.onnx", IMAGES, out_dir=tmp_path, ids=["a.jpg", "b.jpg"])
    assert not report.passed
    with pytest.raises(ParityError) as error:
        report.raise_if_failed()
    worst = report.worst
    assert error.value.exit_code == 4
    for word in (
        worst.image,
        f"{worst.size_hw[1]} x {worst.size_hw[0]} px",
        f"{worst.differing:,} of {worst.pixels:,} pixels",
        str(report.worst_path),
        "Do not deploy",
    ):
        assert word in str(error.value)
    written = json.loads(report.json_path.read_text(encoding="utf-8"))
    assert written["passed"] is False
    assert written["summary"]["differing"] == sum(c.differing for c in report.cases) > 0
    picture = np.array(Image.open(report.worst_path))
    height, width = worst.size_hw
    assert picture.shape == (height, 4 * width + 12, 3)
    red = (picture[:, -width:] == (230, 30, 30)).all(axis=2).sum()
    assert red == worst.differing
    panels = [picture[:, k * (width + 4) : k * (width + 4) + width] for k in (1, 2)]
    assert (panels[0] != panels[1]).any(axis=2).sum() == worst.differing + worst.tied_differing
    assert (panels[0] == CLASSES.palette[:, None, None]).all(axis=3).any(axis=0).all()


def test_a_runtime_that_mixes_up_the_images_of_a_batch_is_caught(exported, tmp_path):
    runtime = Meddling(exported.path, lambda out: {name: array[::-1] for name, array in out.items()})
    report = check_parity(exported.graph, exported.path, IMAGES, out_dir=tmp_path, runtime=runtime)
    assert {c.batch for c in report.cases if not c.passed} == {3, 8}
    assert all(c.passed for c in report.cases if c.batch == 1)


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        (lambda out: {**out, "mask": out["mask"][:, :-1]}, "mask is .* expected"),
        (lambda out: {**out, "mask": out["mask"].astype(np.int64)}, "int64, expected"),
        (lambda out: {"logits": out["logits"]}, "no output 'mask'"),
        (lambda out: {**out, "logits": out["logits"] * np.float32(1.01)}, "logits are off by up to"),
        (lambda out: {**out, "logits": out["logits"] * np.float32(np.nan)}, "logits are off by up to nan"),
        (
            lambda out: {**out, "confidence": out["confidence"] - np.float32(0.01)},
            "confidence are off by up to 1.00e-02",
        ),
    ],
)
def test_malformed_answers_fail_in_words(exported, tmp_path, meddle, words):
    report = check_parity(
        exported.graph, exported.path, IMAGES[:1], out_dir=tmp_path, runtime=Meddling(exported.path, meddle)
    )
    with pytest.raises(ParityError, match=words):
        report.raise_if_failed()
    assert json.loads(report.json_path.read_text(encoding="utf-8"))["summary"]["failed"] == len(report.cases)
    assert report.worst_path.is_file()


def test_an_engine_made_from_the_file_is_reported_under_its_own_name(exported, tmp_path):
    engine = tmp_path / "model.plan"
    engine.write_bytes(b"engine")
    runtime = Meddling(exported.path, lambda out: out)
    report = check_parity(
        *(exported.graph, exported.path, IMAGES[:1]),
        **{"out_dir": tmp_path / "out", "runtime": runtime, "artifact": engine, "batches": (1, 2)},
    )
    assert report.passed
    assert report.artifact == "model.plan"
    assert report.artifact_sha256 == "sha256:" + hashlib.sha256(b"engine").hexdigest()
    assert {c.batch for c in report.cases} == {1, 2}


def test_an_artifact_that_crashes_fails_the_check(exported, tmp_path):
    def crash(_):
        raise ArtifactError("out of memory")

    report = check_parity(
        exported.graph, exported.path, IMAGES[:1], out_dir=tmp_path, runtime=Meddling(exported.path, crash)
    )
    with pytest.raises(ParityError, match="out of memory"):
        report.raise_if_failed()


def test_refused_before_anything_is_compared(exported, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match=r"has 5 classes .* has 4\. It belongs to another version"):
        check_parity(make_graph(n_classes=4), exported.path, IMAGES, out_dir=out)
    with pytest.raises(InputError, match="at least one image"):
        check_parity(exported.graph, exported.path, [], out_dir=out)
    with pytest.raises(InputError, match="2 images but 1 ids"):
        check_parity(exported.graph, exported.path, IMAGES, out_dir=out, ids=["a"])
    with pytest.raises(InputError, match=r"Image 1: expected .*float32"):
        check_parity(exported.graph, exported.path, [IMAGES[0], IMAGES[1].astype(np.float32)], out_dir=out)
    with pytest.raises(InputError, match="training mode"):
        check_parity(make_graph().train(), exported.path, IMAGES, out_dir=out)
    with pytest.raises(ValidationError, match="max_tied"):
        ParityLimits(max_tied=float("nan"))
    assert not out.exists()


def _reference(margin: np.ndarray) -> Reference:
    shape = margin.shape
    return Reference(
        logits=np.zeros((2, 1, 1), np.float32),
        mask=np.zeros(shape, np.uint8),
        confidence=np.ones(shape, np.float32),
        margin=margin.astype(np.float32),
        logit_range=10.0,
    )


def test_tie_rule():
    """Range 10: below a margin of 0.01 a label may differ, on at most 0.1 % of 4,000 pixels."""
    image = np.zeros((40, 100, 3), np.uint8)
    margin = np.full((40, 100), 0.0101)
    margin[0, :5] = 0.0099
    mask = np.zeros((40, 100), np.uint8)
    mask[0, :4] = 1

    def outcome():
        given = {"mask": mask}
        return compare(image[None], _reference(margin), given=given, name="x", limits=ParityLimits()).case

    case = outcome()
    assert (case.passed, case.differing, case.ties, case.tied_differing, case.agreement) == (True, 0, 5, 4, 1.0)
    mask[0, 4] = 1
    case = outcome()
    assert (case.passed, case.tied_differing) == (False, 5)
    assert "5 of 4,000 pixels are ties with another label, allowed 0.10%" in case.problems[0]
    mask[0, 4] = 0
    mask[5, 5] = 1
    case = outcome()
    assert (case.passed, case.differing) == (False, 1)
    assert case.agreement == pytest.approx(1 - 1 / 3995)


def test_a_network_that_gives_nan_does_not_pass(exported, tmp_path):
    graph = make_graph("mask")
    with torch.no_grad():
        graph.model.classifier.bias[0] = torch.nan
    report = check_parity(graph, exported.path, IMAGES[:1], out_dir=tmp_path)
    with pytest.raises(ParityError, match="not finite"):
        report.raise_if_failed()
