"""INT8: calibration, quantised graphs, sensitivity, and the back-off that finds the layer that spoils it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from export_stand_in import CLASSES, TinyModel, make_image, make_manifest
from onnx import TensorProto, numpy_helper

from cilseg.errors import InputError, ParityError
from cilseg.models.inference import InferenceGraph
from cilseg_export.accuracy import AnnotatedImage, accuracy_of, confusion_of
from cilseg_export.audit import audit
from cilseg_export.limits import ParityLimits
from cilseg_export.metadata import read_metadata
from cilseg_export.onnx_export import export_onnx
from cilseg_export.precision.backoff import back_off
from cilseg_export.precision.calibration import METHODS, activation_ranges, choose_images
from cilseg_export.precision.int8 import quantisable_layers, quantise
from cilseg_export.precision.sensitivity import layer_losses
from cilseg_export.precision.source import read_float_graph, write_converted
from cilseg_export.runtime import OnnxRuntime, open_model

IMAGES = [make_image(48 + 8 * i, 64, seed=i) for i in range(4)]  # of different sizes


@pytest.fixture(scope="module")
def source(exported):
    return read_float_graph(exported.path)


@pytest.fixture(scope="module")
def ranges(source):
    return activation_ranges(source, IMAGES)


# Calibration


def test_every_class_is_calibrated_on_and_rare_ones_first():
    presence = np.zeros((50, 3), dtype=bool)
    presence[:40, 0] = True
    presence[7, 1] = presence[31, 2] = True
    chosen = choose_images(presence, ["a", "b", "c"], n_images=4)
    assert {7, 31} <= set(chosen)
    assert len(chosen) == 4
    assert chosen == sorted(chosen) == choose_images(presence, ["a", "b", "c"], n_images=4)
    assert choose_images(presence, ["a", "b", "c"], n_images=1) == [7, 31]  # more than asked for, where classes need it
    assert len(choose_images(presence, ["a", "b", "c"], n_images=500)) == 50


def test_a_class_without_an_image_is_named():
    presence = np.array([[True, False, False]] * 3)
    with pytest.raises(InputError) as error:
        choose_images(presence, ["cat", "dog", "cow"], n_images=2)
    assert "class 'dog' is in none of the 3 images" in str(error.value)
    assert "class 'cow' is in none of the 3 images" in str(error.value)
    assert "'cat'" not in str(error.value)
    assert "--calibration" in str(error.value)


def test_minmax_is_the_range_of_the_activations(source, ranges):
    relus = [node for node in source.model.graph.node if node.op_type == "Relu"]
    watched = onnx.ModelProto()
    watched.CopyFrom(source.model)
    names = [node.output[0] for node in relus]
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = open_model(watched, optimise=False)
    values = [session.run(names, {"image": image[None]}) for image in IMAGES]
    for index, name in enumerate(names):
        low, high = (float(np.ravel(v)[0]) for v in ranges[name].range_value)
        assert low == pytest.approx(min(v[index].min() for v in values))
        assert high == pytest.approx(max(v[index].max() for v in values))


def test_other_methods_take_narrower_ranges_and_print_nothing(source, ranges, capsys):
    name = next(node.output[0] for node in source.model.graph.node if node.op_type == "Relu")
    widest = float(np.ravel(ranges[name].range_value[1])[0])
    for method in set(METHODS) - {"minmax"}:
        found = activation_ranges(source, IMAGES, method=method)
        assert 0.2 * widest < float(np.ravel(found[name].range_value[1])[0]) <= widest * 1.001, method
    assert capsys.readouterr().out == ""


def test_calibration_refusals(source):
    with pytest.raises(InputError, match="got none"):
        activation_ranges(source, [])
    with pytest.raises(InputError, match=r"'mean' is not known\. Methods: minmax, entropy, percentile"):
        activation_ranges(source, IMAGES, method="mean")


# The quantised graph


@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_per_channel_and_what_stays_float(exported, source, tmp_path, symmetric):
    ranges = activation_ranges(source, IMAGES, symmetric=symmetric)
    path = tmp_path / "model.int8.onnx"
    record = write_converted(quantise(source, ranges, symmetric=symmetric), source, path, precision="int8")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert record.operators["QuantizeLinear"] >= 3
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    metadata = read_metadata(path)
    assert (metadata.precision, metadata.derived_from) == ("int8", exported.record.sha256)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    layers = quantisable_layers(source)
    for node in model.graph.node:
        if node.name in layers:
            unpack = producers[node.input[1]]
            assert unpack.op_type == "DequantizeLinear"
            weights, scale = constants[unpack.input[0]], constants[unpack.input[1]]
            assert weights.dtype == np.int8
            assert scale.shape == (weights.shape[0],)
            assert producers[node.input[0]].op_type == "DequantizeLinear"
        elif node.name in source.parts.classifiers:
            assert node.input[1] in constants
            assert constants[node.input[1]].dtype == np.float32
    assert len(layers) == 4
    findings = audit(model)
    assert not findings["openvino"]
    assert bool(findings["tensorrt"]) is not symmetric
    assert ("--symmetric" in record.audit["tensorrt"]) is not symmetric
    assert ("Resize" in {n.op_type for n in model.graph.node}) or "confidence" not in metadata.outputs
    images = np.stack([make_image(47, 61, seed=s) for s in range(2)])
    given, expected = OnnxRuntime(path).run(images), OnnxRuntime(exported.path).run(images)
    assert {k: (v.shape, v.dtype) for k, v in given.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    assert (given["mask"] == expected["mask"]).mean() > 0.9
    assert np.abs(given["logits"] - expected["logits"]).max() < 0.2 * np.ptp(expected["logits"])


def test_layers_that_are_kept_are_float(source, ranges):
    kept = list(quantisable_layers(source))[:2]
    model = quantise(source, ranges, keep=kept)
    constants = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name in quantisable_layers(source):
            assert (node.input[1] in constants) == (node.name in kept)


# Sensitivity and back-off


class Spoilt(TinyModel):
    """One channel before the dilated convolution is a thousand times the others, and weighed a thousandth."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            before, after = self.stem[3], (self.dilated, self.pooled)
            before.weight[0] *= 3000.0
            before.bias[0] = before.bias[0] * 3000.0
            for layer in after:
                layer.weight[:, 0] /= 3000.0


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    torch.manual_seed(7)
    manifest = make_manifest()
    graph = InferenceGraph(Spoilt().eval(), manifest.preprocessing, outputs=("mask", "logits"))
    path = tmp_path_factory.mktemp("spoilt") / "model.onnx"
    export_onnx(graph, path, manifest=manifest, version_digest=manifest.digest)
    return read_float_graph(path), path


def test_the_layer_that_spoils_it_is_the_worst(spoilt):
    source, _ = spoilt
    ranges = activation_ranges(source, IMAGES)
    losses = layer_losses(source, ranges, IMAGES)
    assert losses[0].layer == "dilated"
    assert losses[0].operator == "Conv"
    assert losses[0].score_error > 3 * max(
        loss.score_error for loss in losses if loss.layer not in ("dilated", "pooled")
    )
    assert losses[0].labels_changed > 0
    assert {loss.layer for loss in losses} == {"stem.0", "stem.3", "dilated", "pooled"}


def test_sensitivity_is_what_quantising_that_layer_alone_does(source, ranges):
    """Against onnxruntime's own quantised graph with every other layer in float."""
    losses = {loss.node: loss for loss in layer_losses(source, ranges, IMAGES)}
    for node in losses:
        model = quantise(source, ranges, keep=set(losses) - {node})
        name = source.parts.scores
        if name not in {o for n in model.graph.node for o in n.output}:
            pytest.fail("the stand-in returns its confidence, so upsampled scores stay in the graph")
        error = spread = 0.0
        for image in IMAGES:
            scores = []
            for graph in (source.model, model):
                watched = onnx.ModelProto()
                watched.CopyFrom(graph)
                watched.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
                scores.append(open_model(watched, optimise=False).run([name], {"image": image[None]})[0])
            error += ((scores[1] - scores[0]) ** 2).sum()
            spread += ((scores[0] - scores[0].mean(axis=1, keepdims=True)) ** 2).sum()
        measured = np.sqrt(error / spread)
        assert 0.3 * losses[node].score_error < measured < 3 * losses[node].score_error + 1e-3, losses[node]


def test_back_off_finds_the_spoiler_and_holds_the_limits(spoilt, tmp_path):
    source, float_path = spoilt
    ranges = activation_ranges(source, IMAGES)
    losses = layer_losses(source, ranges, IMAGES)
    expected = OnnxRuntime(float_path).run
    truth = [AnnotatedImage(str(s), im, expected(im[None])["mask"][0]) for s, im in enumerate(IMAGES)]
    reference = confusion_of(expected, truth, n_classes=len(CLASSES))
    limits = ParityLimits(max_miou_drop=6.0, max_class_drop=12.0)
    drops = []

    def judge(model):
        path = tmp_path / "model.int8.onnx"
        write_converted(model, source, path, precision="int8")
        given = confusion_of(OnnxRuntime(path).run, truth, n_classes=len(CLASSES))
        accuracy = accuracy_of(reference, given, class_set=CLASSES, images=len(truth))
        drops.append(accuracy.miou_drop)
        return accuracy.problems(limits)

    found = back_off(source, ranges, losses, judge)
    assert found.trials[0].in_float == 0
    assert "mIoU is" in found.trials[0].problems[0]
    assert "dilated" in {loss.layer for loss in found.kept}
    assert len(found.kept) < len(losses)
    assert not judge(found.model)
    assert found.share_in_float == (len(found.kept) + 1) / 5
    assert min(drops) < drops[0]


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 4])
def test_back_off_leaves_no_more_in_float_than_needed(source, ranges, needed):
    losses = layer_losses(source, ranges, IMAGES[:1])
    seen = []

    def judge(model):
        constants = {t.name for t in model.graph.initializer}
        floats = [n.name for n in model.graph.node if n.name in quantisable_layers(source) and n.input[1] in constants]
        seen.append(floats)
        return () if len(floats) >= needed else ("too much",)

    found = back_off(source, ranges, losses, judge)
    assert found.kept == tuple(losses[:needed])
    assert [t.in_float for t in found.trials] == [len(floats) for floats in seen]
    assert set(seen[-1]) <= {loss.node for loss in losses[: max(len(floats) for floats in seen)]}
    assert found.to_json()["kept_in_float"] == [loss.layer for loss in losses[:needed]]


def test_limits_that_nothing_holds_are_refused(source, ranges):
    losses = layer_losses(source, ranges, IMAGES[:1])
    with pytest.raises(ParityError, match="all 4 layers in float: mIoU is 9 points lower") as error:
        back_off(source, ranges, losses, lambda _: ("mIoU is 9 points lower",))
    assert error.value.exit_code == 4
