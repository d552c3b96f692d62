"""Fold batch norms that the exporter leaves over: those after a concatenation or a sum of convolutions.

``norm(concat(conv_a(x), conv_b(x)))`` equals ``concat(conv_a'(x), conv_b'(x))`` and ``norm(conv_a(x) + conv_b(y))``
equals ``conv_a'(x) + conv_b'(y)``, where each convolution takes its share of scale and shift into weights and bias.
Integer convolutions then feed each other directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def fold_batch_norms(model: Any) -> Any:
    """Return a copy of an ``onnx.ModelProto`` with every batch norm folded whose inputs are convolutions.

    A norm whose inputs are used elsewhere too, or are no convolutions with constant weights, stays.
    """
    import onnx

    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    while True:
        producers = {output: node for node in graph.node for output in node.output}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for norm in graph.node:
            if norm.op_type == "BatchNormalization" and _fold(graph, norm, producers, constants):
                break
        else:
            break
    _drop_unused(graph)
    return folded


def _fold(graph: Any, norm: Any, producers: dict[str, Any], constants: dict[str, Any]) -> bool:
    """Fold one norm and take it out of the graph; False where it cannot be folded."""
    from onnx import numpy_helper

    joint = producers.get(norm.input[0])
    if joint is None or joint.op_type not in ("Concat", "Add") or _uses(graph, joint.output[0]) != 1:
        return False
    if joint.op_type == "Concat" and [a.i for a in joint.attribute if a.name == "axis"] != [1]:
        return False
    convs: list[Any] = [producers.get(name) for name in joint.input]
    for conv in convs:
        if conv is None or conv.op_type != "Conv" or _uses(graph, conv.output[0]) != 1:
            return False
        if not set(conv.input[1:]) <= constants.keys() or any(_uses(graph, name) != 1 for name in conv.input[1:]):
            return False
    if not set(norm.input[1:]) <= constants.keys():
        return False
    gamma, beta, mean, variance = (numpy_helper.to_array(constants[n]).astype(np.float64) for n in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    shift = beta - mean * scale
    start = 0
    for index, conv in enumerate(convs):
        width = constants[conv.input[1]].dims[0]
        if joint.op_type == "Concat":
            part = slice(start, start + width)
            start += width
            _rescale(graph, conv, constants, scale[part], shift[part])
        else:
            _rescale(graph, conv, constants, scale, shift if index == 0 else np.zeros_like(shift))
    joint.output[0] = norm.output[0]
    graph.node.remove(norm)
    return True


def _rescale(
    graph: Any,
    conv: Any,
    constants: dict[str, Any],
    scale: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
) -> None:
    """Multiply the output channels of a convolution by ``scale`` and add ``shift``."""
    from onnx import numpy_helper

    weight = constants[conv.input[1]]
    values = numpy_helper.to_array(weight).astype(np.float64) * scale[:, None, None, None]
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))
    if len(conv.input) > 2:
        bias = constants[conv.input[2]]
        moved = numpy_helper.to_array(bias).astype(np.float64) * scale + shift
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    else:
        name = f"{weight.name.removesuffix('.weight')}.bias"
        graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
        conv.input.append(name)


def _uses(graph: Any, name: str) -> int:
    reads = [read for node in graph.node for read in node.input] + [output.name for output in graph.output]
    return reads.count(name)


def _drop_unused(graph: Any) -> None:
    """Drop constants and value infos that nothing refers to any more."""
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    for field in (graph.initializer, graph.value_info):
        kept = [item for item in field if item.name in used]
        if len(kept) != len(field):
            del field[:]
            field.extend(kept)
