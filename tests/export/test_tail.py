"""The mask tail by cells gives the labels of upsampling and arg-max, at any size, batch and number of classes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from export_stand_in import make_image
from onnx import TensorProto, helper, numpy_helper

from cilseg_export.precision.tail import with_cell_tail
from cilseg_export.runtime import open_model


def plain_tail(n_classes: int, factor: int, *, mode: str = "linear") -> onnx.ModelProto:
    """Logits and an image (for its size) to a mask: bilinear upsampling, crop, arg-max."""
    nodes = [
        helper.make_node("Resize", ["logits", "", "scales"], ["up"], name="up", mode=mode),
        helper.make_node("Shape", ["image"], ["shape"], name="shape"),
        helper.make_node("Slice", ["shape", "one", "three"], ["size"], name="size"),
        helper.make_node("Slice", ["up", "zeros", "size", "axes"], ["crop"], name="crop"),
        helper.make_node("ArgMax", ["crop"], ["best"], name="best", axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["mask"], name="mask", to=TensorProto.UINT8),
    ]
    constants = {
        "scales": np.array([1, 1, factor, factor], np.float32),
        "one": np.array([1]),
        "three": np.array([3]),
        "zeros": np.array([0, 0]),
        "axes": np.array([2, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "tail",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "height", "width", 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", n_classes, "h", "w"]),
        ],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["n", "height", "width"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def openvino_mask(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.array(compiled(given)["mask"])


@pytest.mark.parametrize("kind", ["smooth", "noise", "one class", "ties"])
@pytest.mark.parametrize(
    ("n_classes", "factor", "shape"),
    [(5, 16, (1, 64, 80)), (21, 8, (2, 47, 61)), (2, 4, (3, 9, 30)), (3, 16, (1, 1, 1))],
)
def test_labels_are_those_of_upsampling(kind, n_classes, factor, shape):
    model = plain_tail(n_classes, factor)
    cells = with_cell_tail(model)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(cells), full_check=True)
    assert not {"Resize", "TopK"} & {node.op_type for node in cells.graph.node}
    rng = np.random.default_rng(n_classes)
    n, height, width = shape
    logits = rng.standard_normal((n, n_classes, -(-height // factor), -(-width // factor))).astype(np.float32)
    if kind == "smooth":
        logits = np.cumsum(np.cumsum(logits, axis=2), axis=3)
    elif kind == "one class":
        logits[:, 1] += 100
    elif kind == "ties":
        logits[:] = np.round(logits[:1, :1])
    given = {"image": np.zeros((n, height, width, 3), np.uint8), "logits": logits}
    (expected,) = open_model(model).run(["mask"], given)
    for mask in (open_model(cells).run(["mask"], given)[0], openvino_mask(cells, given)):
        assert mask.shape == expected.shape == shape
        assert mask.dtype == expected.dtype
        assert (mask != expected).mean() <= (0.001 if kind == "noise" else 0)  # rounding where two classes cross
        if kind == "ties":
            assert not mask.any()


def test_the_exported_graph_keeps_upsampling_for_its_confidence_alone(exported, exported_mask):
    images = np.stack([make_image(45, 70, seed=s) for s in range(2)])
    for source, resizes in ((exported, 1), (exported_mask, 0)):
        model = onnx.load(source.path)
        cells = with_cell_tail(model)
        assert sum(node.op_type == "Resize" for node in cells.graph.node) == resizes
        names = [output.name for output in model.graph.output]
        expected = open_model(model).run(names, {"image": images})
        for name, given, wanted in zip(names, open_model(cells).run(names, {"image": images}), expected, strict=True):
            np.testing.assert_array_equal(given, wanted, err_msg=name)


@pytest.mark.parametrize("model", [plain_tail(3, 5), plain_tail(3, 4, mode="nearest")])
def test_other_upsampling_stays(model):
    assert with_cell_tail(model) is model
