"""Upsampling and arg-max of a mask in a fraction of the time, with the same answer.

Between four neighbouring sites of the logits every pixel is a weighted mean of the four. Where one class wins at all
four it wins at every pixel between them, so such a *cell* needs no upsampling at all; only cells on a border between
classes are interpolated, and all classes of a pixel lie side by side in memory there. Shapes depend on the data then
(``NonZero``), which processors run well and CUDA graphs cannot hold: TensorRT files keep the plain upsampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = np.iinfo(np.int32).max


def with_cell_tail(model: Any) -> Any:
    """Return a copy whose mask comes from cells; a graph that does not end in bilinear upsampling is returned as it is.

    Args:
        model: an ``onnx.ModelProto`` of the graph contract; logits go through ``Resize`` (linear, half pixel, by an
            even constant factor), are cropped to the image and arg-maxed.
    """
    found = _upsampling(model)
    if found is None:
        return model
    import onnx

    logits, factor, arg_max = found
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    (last,) = [n for n in graph.node if n.op_type == "Cast" and n.input[0] == arg_max]
    graph.node.remove(last)
    tail = _Builder()
    tail.build(logits, factor, image=graph.input[0].name, mask=last.output[0])
    graph.node.extend(tail.nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tail.constants.items())
    _drop_idle(graph)
    return copy


def _upsampling(model: Any) -> tuple[str, int, str] | None:
    """Return the tensor of logits, the factor and the output of the arg-max, or None where the graph ends otherwise."""
    from onnx import helper, numpy_helper

    producers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    (arg_max,) = [node for node in model.graph.node if node.op_type == "ArgMax"]
    node = producers.get(arg_max.input[0])
    while node is not None and node.op_type == "Slice":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Resize" or len(node.input) < 3 or node.input[2] not in constants:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    scales = numpy_helper.to_array(constants[node.input[2]]).tolist()
    is_linear = attributes.get("mode") == b"linear"
    is_half_pixel = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
    if not is_linear or not is_half_pixel or scales[:2] != [1, 1] or scales[2] != scales[3] or scales[2] % 2:
        return None
    return node.input[0], int(scales[2]), arg_max.output[0]


class _Builder:
    """Collects nodes and constants under names that start with ``tail``."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"tail_{len(self.nodes)}_{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def number(self, *values: int) -> str:
        name = f"tail_constant_{len(self.constants)}"
        self.constants[name] = np.array(values, dtype=np.int64)
        return name

    def build(self, logits: str, factor: int, *, image: str, mask: str) -> None:
        """Add what leads from ``logits`` ``(N, C, h, w)`` to ``mask`` ``(N, H, W)`` at the size of ``image``."""
        from onnx import TensorProto

        # Borders repeat the outermost site, as upsampling does: (h + 1) x (w + 1) cells of factor x factor pixels.
        padded = self.add("Pad", logits, self.number(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
        sites = self.add("Transpose", padded, perm=[0, 2, 3, 1])
        winners = self.add("Cast", self.add("ArgMax", padded, axis=1, keepdims=0), to=TensorProto.INT32)
        starts = [(top, left) for top in (0, 1) for left in (0, 1)]
        classes = [self._corner(winners, *start) for start in starts]
        same = [self.add("Equal", classes[0], other) for other in classes[1:]]
        uniform = self.add("And", self.add("And", same[0], same[1]), same[2])
        mixed = self.add("Transpose", self.add("NonZero", self.add("Not", uniform)), perm=[1, 0])  # (K, 3)
        corners = [
            self.add("Unsqueeze", self.add("GatherND", self._corner(sites, *start), mixed), self.number(2))
            for start in starts
        ]
        quads = self.add("Concat", *corners, axis=2)  # (K, C, 4)
        self.constants["tail_weights"] = np.ascontiguousarray(_weights(factor).T)
        pixels = self.add("ArgMax", self.add("MatMul", quads, "tail_weights"), axis=1, keepdims=0)
        pixels = self.add("Cast", pixels, to=TensorProto.UINT8)  # (K, factor * factor)

        cells = self.add("Shape", uniform)
        shape = self.add("Concat", cells, self.number(factor * factor), axis=0)
        flat = self.add("Unsqueeze", self.add("Cast", classes[0], to=TensorProto.UINT8), self.number(3))
        blocks = self.add("ScatterND", self.add("Expand", flat, shape), mixed, pixels)
        shape = self.add("Concat", cells, self.number(factor, factor), axis=0)
        blocks = self.add("Transpose", self.add("Reshape", blocks, shape), perm=[0, 1, 3, 2, 4])
        sides = self.add("Mul", cells, self.number(1, factor, factor))
        full = self.add("Reshape", blocks, sides)
        # The first half cell lies outside the image.
        half = factor // 2
        size = self.add("Slice", self.add("Shape", image), self.number(1), self.number(3))
        ends = self.add("Add", size, self.number(half, half))
        self.add("Slice", full, self.number(half, half), ends, self.number(1, 2), output=mask)

    def _corner(self, tensor: str, top: int, left: int) -> str:
        """Return one corner of every cell from a tensor of sites ``(N, h + 2, w + 2, ...)``."""
        ends = self.number(*(_LARGEST if start else -1 for start in (top, left)))
        return self.add("Slice", tensor, self.number(top, left), ends, self.number(1, 2))


def _weights(factor: int) -> npt.NDArray[np.float32]:
    """Return ``(factor * factor, 4)``: the share of each corner in every pixel of a cell."""
    second = (np.arange(factor) + 0.5) / factor
    line = np.stack([1.0 - second, second])
    shares = np.einsum("as,bt->stab", line, line).reshape(factor * factor, 4)
    return np.asarray(shares, dtype=np.float32)


def _drop_idle(graph: Any) -> None:
    """Drop nodes, constants and value infos that lead to no output any more."""
    producers = {output: node for node in graph.node for output in node.output}
    waiting, needed = [output.name for output in graph.output], set[str]()
    while waiting:  # quantisers leave nodes out of order
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += producers[name].input if name in producers else []
    kept = [node for node in graph.node if needed & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    for field in (graph.initializer, graph.value_info):
        used = [item for item in field if item.name in needed]
        del field[:]
        field.extend(used)
