"""A hand-made network with a stride and a known reach: cell means, one convolution, bilinear upsampling."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

STRIDE = 4
RADIUS_CELLS = 2
REACH_PX = STRIDE * (RADIUS_CELLS + 1)
"""No pixel further away than this changes an answer (the last cell is for the interpolation)."""


def make_strided_onnx(*, confidence: bool = False, logits: bool = True, pooled: bool = False) -> bytes:
    """Build the model; ``pooled`` adds the mean over everything it is given, as DeepLabV3's pooled branch does."""
    kernel = 2 * RADIUS_CELLS + 1
    rng = np.random.default_rng(7)
    constants = {
        "weight": rng.normal(size=(4, 3, kernel, kernel)).astype(np.float32) / 100,
        "scales": np.array([1, 1, STRIDE, STRIDE], np.float32),
        "from": np.array([0, 0], np.int64),
        "axes": np.array([2, 3], np.int64),
        "sides": np.array([1, 2], np.int64),
        "channel": np.array([1], np.int64),
        "one": np.array(1.0 if pooled else 0.0, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["cells"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2, ceil_mode=1
        ),
        helper.make_node("Conv", ["cells", "weight"], ["near"], pads=[RADIUS_CELLS] * 4),
        helper.make_node("GlobalAveragePool", ["near"], ["mean"]),
        helper.make_node("Mul", ["mean", "one"], ["far"]),
        helper.make_node("Sub", ["near", "far"], ["logits"]),
        helper.make_node(
            "Resize",
            ["logits", "", "scales"],
            ["large"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "sides"], ["size"]),
        helper.make_node("Slice", ["large", "from", "size", "axes"], ["pixels"]),
        helper.make_node("ArgMax", ["pixels"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Softmax", ["pixels"], ["probability"], axis=1),
        helper.make_node("ReduceMax", ["probability", "channel"], ["confidence"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"])]
    if confidence:
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", "H", "W"]))
    if logits:
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, "h", "w"]))
    graph = helper.make_graph(
        nodes,
        "strided",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
