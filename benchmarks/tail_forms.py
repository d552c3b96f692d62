"""Upsampling and arg-max of an exported graph in other forms, for one fixed size: what ``export_latency`` compares.

All give the same mask up to rounding; only the way through memory differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import ArtifactError

STRIP_ROWS = 4


def tail_forms(model: Any, *, n_classes: int, height: int, width: int, stride: int) -> dict[str, Any]:
    """Return form -> ``onnx.ModelProto`` with that tail, at ``height`` x ``width`` (multiples of ``stride``), batch 1.

    ``none`` ends with the logits: what a call costs without the tail.

    Raises:
        ArtifactError: the logits are not found in the graph.
    """
    logits = find_logits(model)
    h, w = height // stride, width // stride
    builders: dict[str, Callable[[_Tail], None]] = {
        "Resize, arg-max": lambda t: t.resize(stride),
        "two matrix products": lambda t: t.products(h, w, stride),
        "two matrix products, classes last": lambda t: t.products_last(h, w, n_classes, stride),
        "tiled": lambda t: t.tiled(h, stride),
    }
    forms = {"none": _cut(model, logits, n_classes)}
    for name, build in builders.items():
        forms[name] = _with_tail(model, logits, build)
    return forms


def find_logits(model: Any) -> str:
    """Return the tensor of logits: the output of the last convolution, or the Concat of several classifiers' ones.

    Raises:
        ArtifactError: no convolution.
    """
    producers = {o: n for n in model.graph.node for o in n.output}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    last = [n for n in model.graph.node if n.op_type == "Conv"]
    if not last:
        raise ArtifactError("The graph has no convolution, so its logits cannot be found.")
    tensor = str(last[-1].output[0])
    while True:
        following = consumers.get(tensor, [])
        if len(following) != 1:
            return tensor
        (node,) = following
        classifiers = node.op_type == "Concat" and all(
            i in producers and producers[i].op_type in ("Conv", "DequantizeLinear", "Cast") for i in node.input
        )
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast", "Add") and not classifiers:
            return tensor
        if node.op_type == "Cast" and node.output[0] == "mask":
            return tensor
        tensor = str(node.output[0])


def _body(model: Any, logits: str) -> Any:
    """Return a copy of the model with everything that does not lead to the logits taken away."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    needed, kept = {logits}, []
    for node in reversed(copy.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    del copy.graph.node[:]
    copy.graph.node.extend(reversed(kept))
    used = [t for t in copy.graph.initializer if t.name in needed]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(used)
    del copy.graph.value_info[:]
    return copy


def _cut(model: Any, logits: str, n_classes: int) -> Any:
    """Return the model that ends with the logits, under the name ``mask`` so that it can be timed in the same way."""
    import onnx

    body = _body(model, logits)
    float32 = onnx.TensorProto.FLOAT
    body.graph.node.append(onnx.helper.make_node("Identity", [logits], ["mask"]))
    del body.graph.output[:]
    body.graph.output.append(onnx.helper.make_tensor_value_info("mask", float32, ["batch", n_classes, "h", "w"]))
    return body


def _with_tail(model: Any, logits: str, build: Callable[[_Tail], None]) -> Any:
    import onnx

    body = _body(model, logits)
    tail = _Tail(logits)
    build(tail)
    body.graph.node.extend(tail.nodes)
    body.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in tail.constants.items())
    del body.graph.output[:]
    axes = ["batch", "height", "width"]
    body.graph.output.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.UINT8, axes))
    return body


class _Tail:
    """Collects the nodes of one form."""

    def __init__(self, logits: str) -> None:
        self.logits = logits
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"form_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: npt.NDArray[Any]) -> str:
        name = f"form_constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def mask(self, pixel_logits: str, axis: int) -> None:
        from onnx import TensorProto

        ids = self.add("ArgMax", pixel_logits, axis=axis, keepdims=0)
        self.add("Cast", ids, output="mask", to=TensorProto.UINT8)

    def resize(self, stride: int) -> None:
        scales = self.constant(np.array([1, 1, stride, stride], dtype=np.float32))
        self.mask(self.add("Resize", self.logits, "", scales, mode="linear"), 1)

    def products(self, h: int, w: int, stride: int) -> None:
        right = self.constant(np.ascontiguousarray(interpolation(w, stride).T))
        rows = self.add("MatMul", self.logits, right)
        self.mask(self.add("MatMul", self.constant(interpolation(h, stride)), rows), 1)

    def products_last(self, h: int, w: int, n_classes: int, stride: int) -> None:
        last = self.add("Transpose", self.logits, perm=[0, 2, 3, 1])
        flat = self.add("Reshape", last, self.constant(np.array([0, h, w * n_classes])))
        tall = self.add("MatMul", self.constant(interpolation(h, stride)), flat)
        rows = self.add("Reshape", tall, self.constant(np.array([0, h * stride, w, n_classes])))
        self.mask(self.add("MatMul", self.constant(interpolation(w, stride)), rows), 3)

    def tiled(self, h: int, stride: int) -> None:
        """Strips of a few rows of logits with one row of neighbours: each stays in the cache until its arg-max."""
        from onnx import TensorProto

        scales = self.constant(np.array([1, 1, stride, stride], dtype=np.float32))
        axis, mask_axis = self.constant(np.array([2])), self.constant(np.array([1]))
        strips = []
        for start in range(0, h, STRIP_ROWS):
            stop = min(h, start + STRIP_ROWS)
            low, high = max(0, start - 1), min(h, stop + 1)
            ends = [self.constant(np.array([n])) for n in (low, high)]
            part = self.add("Slice", self.logits, *ends, axis)
            ids = self.add("ArgMax", self.add("Resize", part, "", scales, mode="linear"), axis=1, keepdims=0)
            small = self.add("Cast", ids, to=TensorProto.UINT8)
            ends = [self.constant(np.array([n * stride])) for n in (start - low, stop - low)]
            strips.append(self.add("Slice", small, *ends, mask_axis))
        self.add("Concat", *strips, output="mask", axis=1)


def interpolation(size: int, factor: int) -> npt.NDArray[np.float32]:
    """Return the matrix ``(size * factor, size)`` of bilinear upsampling, half-pixel centres, edges repeated."""
    matrix = np.zeros((size * factor, size), dtype=np.float32)
    for row in range(size * factor):
        position = (row + 0.5) / factor - 0.5
        low = int(np.floor(position))
        matrix[row, max(low, 0)] += 1 - (position - low)
        matrix[row, min(low + 1, size - 1)] += position - low
    return matrix
