"""The ONNX graph as TensorRT wants it: class ids reach uint8 by way of float32, INT8 is symmetric and signed.

TensorRT converts to and from uint8 only from float32 and float16 (documentation of ``DataType.UINT8``, 10.16 and 11.4),
while ONNX's arg-max gives int64. Ids up to 255 are exact in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cilseg.errors import FaultCollector, InputError


def for_tensorrt(model: Any, *, name: str) -> Any:
    """Return a copy of an ``onnx.ModelProto`` that TensorRT takes and that answers the same.

    Raises:
        InputError: INT8 with unsigned or shifted activations, which TensorRT does not run; all places are named.
    """
    import onnx

    _check_quantisation(model, name)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    element = {v.name: v.type.tensor_type.elem_type for v in (*copy.graph.value_info, *copy.graph.input)}
    nodes = []
    for node in copy.graph.node:
        is_cast = node.op_type == "Cast" and any(a.name == "to" and a.i == uint8 for a in node.attribute)
        if is_cast and element.get(node.input[0]) not in (float32, onnx.TensorProto.FLOAT16):
            between = f"{node.output[0]}__float"
            nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [between], name=between, to=float32))
            node.input[0] = between
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _check_quantisation(model: Any, name: str) -> None:
    """Refuse zero points that are not int8 zero."""
    import onnx

    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(a.t for a in node.attribute if a.name == "value")
    faults = FaultCollector(f"{name} has INT8 that TensorRT does not run")
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero_point = constants.get(node.input[2])
        if zero_point is None or zero_point.data_type == onnx.TensorProto.INT32:  # biases
            continue
        values = onnx.numpy_helper.to_array(zero_point)
        if values.dtype != np.int8 or values.any():
            faults.add(f"{node.op_type} {node.name or node.output[0]}: zero point {values.dtype} {values.flat[0]}")
    faults.raise_if_any(
        "TensorRT takes signed INT8 with a zero point of 0. Quantise symmetrically with signed activations, or build "
        "the engine from the float16 file.",
        error=InputError,
    )
