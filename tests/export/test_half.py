"""Float16: contract and answers stay, sensitive nodes and values beyond the range stay float32."""

from __future__ import annotations

import errno
import os

import numpy as np
import onnx
import pytest
from export_stand_in import make_image
from onnx import TensorProto, numpy_helper

from cilseg.config import configs_directory
from cilseg.errors import ArtifactError, InputError
from cilseg_export.accuracy import AnnotatedImage, accuracy_of, confusion_of
from cilseg_export.activations import largest_values
from cilseg_export.graph import anatomy
from cilseg_export.limits import load_limits
from cilseg_export.metadata import read_metadata
from cilseg_export.parity import check_parity
from cilseg_export.precision.half import HEADROOM, LARGEST, convert_to_half
from cilseg_export.runtime import OnnxRuntime

IMAGES = [make_image(60, 80, seed=1), make_image(75, 51, seed=2)]
LIMITS = load_limits("default", configs=configs_directory())["float16"]


@pytest.fixture(scope="module")
def half(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "model.fp16.onnx"
    return path, *convert_to_half(exported.path, path, IMAGES)


def test_inputs_outputs_opset_and_lineage_stay(exported, half):
    path, record, _ = half
    before, after = onnx.load(exported.path), onnx.load(path)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.ir_version == before.ir_version
    assert list(after.opset_import) == list(before.opset_import)
    metadata, old = read_metadata(path), read_metadata(exported.path)
    assert (metadata.precision, metadata.derived_from) == ("float16", exported.record.sha256)
    assert metadata.model_copy(update={"precision": "float32", "derived_from": None}) == old
    assert record.precision == "float16"
    assert record.size_bytes < 0.75 * exported.record.size_bytes


def test_layers_are_float16_and_the_sensitive_parts_float32(exported, half):
    path, _, conversion = half
    model, parts = onnx.load(path), anatomy(onnx.load(exported.path))
    weights = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            wanted = TensorProto.FLOAT if node.name in parts.classifiers else TensorProto.FLOAT16
            assert weights[node.input[1]] == wanted, node.name
    for kind in ("Resize", "ArgMax", "Softmax", "ReduceMean", "Sub", "Div"):
        assert kind in {n.op_type for n in model.graph.node if n.name in conversion.kept}
    assert any(conversion.kept[name] == "ReduceMean is sensitive" for name in conversion.kept)


def test_nothing_that_stays_float32_is_rounded_on_its_way(half):
    model = onnx.load(half[0])
    casts = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast"}
    to = {name: node.attribute[0].i for name, node in casts.items()}
    for name, node in casts.items():
        if to[name] == TensorProto.FLOAT and node.input[0] in casts:
            assert to[node.input[0]] != TensorProto.FLOAT16, f"{name} goes through float16"


def test_answers_hold_the_limits(exported, half, tmp_path):
    runtimes = [OnnxRuntime(path).run for path in (exported.path, half[0])]
    truth = [AnnotatedImage(str(i), im, runtimes[0](im[None])["mask"][0]) for i, im in enumerate(IMAGES)]
    tables = [confusion_of(run, truth, n_classes=5) for run in runtimes]
    accuracy = accuracy_of(*tables, class_set=exported.manifest.class_set, images=2)
    report = check_parity(
        exported.graph, half[0], IMAGES, out_dir=tmp_path, limits=LIMITS, accuracy=accuracy, label="fp16"
    )
    report.raise_if_failed()
    assert report.json_path.name == "parity.fp16.json"
    assert 1e-6 < max(c.logit_error for c in report.cases) < 5e-3


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1e5, "float16 ends at 65504"), (1e-4, "float16 loses digits under 6.1e-05")],
)
def test_values_beyond_the_range_stay_float32(exported, tmp_path, factor, words):
    """A convolution whose answers are large or whose weights are tiny, and the next ones, which bring it back."""
    model = onnx.load(exported.path)
    layers = [n for n in model.graph.node if n.op_type == "Conv"]
    constants = {t.name: t for t in model.graph.initializer}
    for node, scale, names in (
        (layers[1], factor, layers[1].input[1:3]),
        (layers[2], 1 / factor, layers[2].input[1:2]),
        (layers[3], 1 / factor, layers[3].input[1:2]),
    ):
        assert node.op_type == "Conv"
        for name in names:
            value = numpy_helper.to_array(constants[name]) * np.float32(scale)
            constants[name].CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, tmp_path / "wide.onnx")
    largest = largest_values(onnx.load(tmp_path / "wide.onnx"), IMAGES)
    assert (largest[layers[1].output[0]] > LARGEST) == (factor > 1)
    _, conversion = convert_to_half(tmp_path / "wide.onnx", tmp_path / "half.onnx", IMAGES)
    assert words in conversion.kept[layers[1].name]
    assert conversion.largest_value <= LARGEST / HEADROOM
    answers = [OnnxRuntime(tmp_path / f"{n}.onnx").run(IMAGES[0][None])["logits"] for n in ("wide", "half")]
    np.testing.assert_allclose(answers[1], answers[0], atol=5e-3 * np.ptp(answers[0]))


def test_largest_values_are_those_of_the_activations(exported):
    found = largest_values(onnx.load(exported.path), IMAGES)
    logits = [OnnxRuntime(exported.path).run(image[None])["logits"] for image in IMAGES]
    (resize,) = [n for n in onnx.load(exported.path).graph.node if n.op_type == "Resize"]
    # interpolated values lie between the logits
    assert 0 < found[resize.output[0]] <= max(np.abs(values).max() for values in logits) * (1 + 1e-6)


def test_refusals(exported, half, tmp_path):
    with pytest.raises(InputError, match="got none"):
        convert_to_half(exported.path, tmp_path / "a.onnx", [])
    with pytest.raises(ArtifactError, match="has precision float16; a lower precision is made from the float32 file"):
        convert_to_half(half[0], tmp_path / "a.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(exported, tmp_path, monkeypatch):
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        convert_to_half(exported.path, path, IMAGES)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
