"""Cost in IoU against the confusion matrices of evaluation, and the report and script of a failed check."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from export_stand_in import CLASSES, make_image

from cilseg.errors import ArtifactError, ParityError
from cilseg.evaluate.confusion import confusion_matrix
from cilseg.evaluate.scoring import Scores
from cilseg_export.accuracy import AnnotatedImage, accuracy_of, confusion_of
from cilseg_export.limits import ParityLimits
from cilseg_export.parity import check_parity
from cilseg_export.runtime import OnnxRuntime

RNG = np.random.default_rng(3)
N = len(CLASSES)
IMAGES = [make_image(60, 80, seed=1), make_image(75, 51, seed=2)]


def sample(name: str, height: int, width: int, *, scale: int = 1) -> AnnotatedImage:
    """An image half the size of its truth where ``scale`` is 2; the truth lacks class 3 and holds void."""
    truth = RNG.choice(np.array([0, 1, 2, 4, 255], np.uint8), (height * scale, width * scale))
    return AnnotatedImage(name, make_image(height, width, seed=len(name)), truth)


SAMPLES = [sample("a", 20, 30), sample("bb", 11, 7, scale=2)]


def noisy(images):
    rng = np.random.default_rng(images.shape[1])
    return {"mask": rng.integers(0, N, images.shape[:3]).astype(np.uint8)}


def test_tables_are_those_of_evaluation():
    table = confusion_of(noisy, SAMPLES, n_classes=N)
    expected = np.zeros_like(table)
    for s in SAMPLES:
        mask = noisy(s.image[None])["mask"][0]
        if mask.shape != s.truth.shape:
            mask = mask.repeat(2, axis=0).repeat(2, axis=1)
        expected += confusion_matrix(s.truth, mask, n_classes=N)
    np.testing.assert_array_equal(table, expected)


def test_classes_that_nobody_annotated_do_not_count_on_background():
    table = confusion_of(noisy, SAMPLES, n_classes=N, hidden=frozenset({4}))
    full = confusion_of(noisy, SAMPLES, n_classes=N)
    assert table[0, 4] == 0 < full[0, 4]
    full[0, 4] = 0
    np.testing.assert_array_equal(table, full)


def test_losses_are_points_of_iou_of_the_classes_that_are_there():
    tables = [confusion_of(run, SAMPLES, n_classes=N) for run in (lambda im: {"mask": noisy(im)["mask"] * 0}, noisy)]
    accuracy = accuracy_of(*tables, class_set=CLASSES, images=2)
    ious = [Scores(table).class_iou for table in tables]
    present = [0, 1, 2, 4]
    assert [c.name for c in accuracy.classes] == [CLASSES.names[i] for i in present]
    for c, i in zip(accuracy.classes, present, strict=True):
        assert (c.reference, c.given) == pytest.approx((100 * ious[0][i], 100 * ious[1][i]))
    assert accuracy.miou_drop == pytest.approx(np.mean([100 * (ious[0][i] - ious[1][i]) for i in present]))
    assert accuracy.worst.name == max(accuracy.classes, key=lambda c: c.reference - c.given).name
    limits = ParityLimits(max_miou_drop=0.1, max_class_drop=accuracy.worst.drop - 0.01)
    words = " ".join(accuracy.problems(limits))
    assert f"IoU of {accuracy.worst.name!r} is {accuracy.worst.drop:.2f} points lower" in words
    assert not accuracy.problems(ParityLimits(max_miou_drop=100, max_class_drop=100))
    assert accuracy_of(tables[0] * 0, tables[0] * 0, class_set=CLASSES, images=0) is None


def test_a_mask_that_does_not_fit_is_refused():
    for answer in (lambda im: {"mask": noisy(im)["mask"][:, 1:]}, lambda im: {"mask": noisy(im)["mask"] + np.uint8(9)}):
        with pytest.raises(ArtifactError, match=r"a: the answer is .* ids under 5"):
            confusion_of(answer, SAMPLES, n_classes=N)


def test_limits_on_iou_fail_a_file_whose_labels_agree(exported, tmp_path):
    truth = [AnnotatedImage("x", IMAGES[0], OnnxRuntime(exported.path).run(IMAGES[0][None])["mask"][0])]
    perfect = confusion_of(OnnxRuntime(exported.path).run, truth, n_classes=N)
    worse = perfect.copy()
    biggest = int(worse.diagonal().argmax())
    other = (biggest + 1) % N
    worse[biggest, other] += 60
    worse[biggest, biggest] -= 60
    accuracy = accuracy_of(perfect, worse, class_set=CLASSES, images=1)
    limits = ParityLimits(max_miou_drop=0.1)
    report = check_parity(exported.graph, exported.path, IMAGES, out_dir=tmp_path, limits=limits, accuracy=accuracy)
    assert all(case.passed for case in report.cases)
    with pytest.raises(ParityError, match=r"Over all images: mIoU is [\d.]+ points lower, allowed 0.10"):
        report.raise_if_failed()
    written = json.loads(report.json_path.read_text())
    assert written["passed"] is False
    assert written["summary"]["accuracy"]["miou_drop"] == pytest.approx(accuracy.miou_drop, abs=1e-3)
    unmeasured = check_parity(exported.graph, exported.path, IMAGES[:1], out_dir=tmp_path, limits=limits)
    with pytest.raises(ParityError, match="IoU was not compared: no annotated images"):
        unmeasured.raise_if_failed()


@pytest.mark.parametrize("allowed", [0.0, 1.0])
def test_the_script_beside_a_failed_report_asks_again(exported, tmp_path, allowed):
    model = onnx.load(exported.path)
    (bias,) = [t for t in model.graph.initializer if t.name.endswith("classifier.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[2] += 1.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    limits = ParityLimits(max_differing=allowed, max_logit_error=1e-9)
    out = tmp_path / "out"
    out.mkdir()
    report = check_parity(exported.graph, tmp_path / "broken.onnx", IMAGES, out_dir=out, limits=limits, label="x")
    assert not report.passed
    with pytest.raises(ParityError, match=r"reproduce\.py asks the file for that image again"):
        report.raise_if_failed()
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=out, capture_output=True, text=True, check=False)
    worst = report.worst
    assert done.returncode == (0 if allowed else 4), done.stderr
    assert f"{worst.differing} of {worst.pixels} pixels differ outside ties (then: {worst.differing})" in done.stdout
    assert f"batch of {worst.batch}" in done.stdout
    assert str(tmp_path) not in (out / "reproduce.py").read_text()


def test_a_check_that_passes_leaves_no_script(exported, tmp_path):
    assert check_parity(exported.graph, exported.path, IMAGES[:1], out_dir=tmp_path).passed
    assert {p.name for p in tmp_path.iterdir()} == {"parity.json", "parity_worst.png"}
