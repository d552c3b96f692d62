"""Upsampling and arg-max of a mask in a fraction of the time, with the same answer.

Between four neighbouring sites of the logits every pixel is a weighted mean of the four. Where one class wins at all
four it wins at every pixel between them, so such a *cell* needs no upsampling at all; only cells on a border between
classes are interpolated, large ones in two steps: first to a coarser grid, then only between those of its sites that
differ. Shapes depend on the data then (``NonZero``), which processors run well and CUDA graphs cannot hold: TensorRT
files keep the plain upsampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


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
        return self.constant(values)

    def constant(self, values: Sequence[object]) -> str:
        name = f"tail_constant_{len(self.constants)}"
        self.constants[name] = np.array(values, dtype=np.int64)
        return name

    def build(self, logits: str, factor: int, *, image: str, mask: str) -> None:
        """Add what leads from ``logits`` ``(N, C, h, w)`` to ``mask`` ``(N, H, W)`` at the size of ``image``."""
        blocks, cells = self._cells(logits, _levels(factor), border=True)
        sides = self.add("Mul", self.add("Shape", cells), self.number(1, factor, factor))
        full = self.add("Reshape", blocks, sides)
        # The first half cell lies outside the image.
        half = factor // 2
        size = self.add("Slice", self.add("Shape", image), self.number(1), self.number(3))
        ends = self.add("Add", size, self.number(half, half))
        self.add("Slice", full, self.number(half, half), ends, self.number(1, 2), output=mask)

    def _cells(self, sites: str, levels: tuple[int, ...], *, border: bool) -> tuple[str, str]:
        """Add what leads from ``sites`` ``(N, C, h, w)`` to the pixels of the cells between them.

        Args:
            sites: logits.
            levels: into how many parts a side of a cell is divided; mixed parts again by the next number.
            border: whether half cells surround the sites, in which the outermost site repeats, as upsampling has it.

        Returns:
            Classes ``(N, rows of cells, lines of a cell, columns of cells, columns of a cell)`` and one class of each
            cell, ``(N, rows, columns)``; both uint8.
        """
        from onnx import TensorProto

        side = int(np.prod(levels))
        # A border adds no other class to a cell, so pooling need not repeat it.
        winners = self.add("Cast", self.add("ArgMax", sites, axis=1, keepdims=1), to=TensorProto.FLOAT)
        pool: dict[str, Any] = {"kernel_shape": [2, 2], "pads": [int(border)] * 4}
        highest = self.add("MaxPool", winners, **pool)
        mean = self.add(
            "AveragePool", winners, count_include_pad=0, **pool
        )  # of few small integers: exact if all equal
        mixed = self.add("NonZero", self.add("Sub", highest, mean))
        # (K, 1, 4): image, 0, row, column of every cell between sites of several classes.
        mixed = self.add("Unsqueeze", self.add("Transpose", mixed, perm=[1, 0]), self.number(1))
        # The first cell always comes along, because OpenVINO refuses to work on none.
        mixed = self.add("Concat", self.constant([[[0, 0, 0, 0]]]), mixed, axis=0)
        if border:
            sites = self.add("Pad", sites, self.number(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
        vectors = self.add("Unsqueeze", self.add("Transpose", sites, perm=[0, 2, 3, 1]), self.number(1))
        corners = self.add("Add", mixed, self.constant([[0, 0, y, x] for y in (0, 1) for x in (0, 1)]))
        quads = self.add("Transpose", self.add("GatherND", vectors, corners), perm=[0, 2, 1])  # (K, C, 4)
        if len(levels) == 1:
            scores = self.add("MatMul", quads, self.weights((np.arange(side) + 0.5) / side))
            pixels = self.add("Cast", self.add("ArgMax", scores, axis=1, keepdims=0), to=TensorProto.UINT8)
        else:
            n = levels[0] + 1
            finer = self.add("MatMul", quads, self.weights(np.arange(n) / levels[0]))
            finer = self.add("Reshape", finer, self.number(0, 0, n, n))
            pixels, _ = self._cells(finer, levels[1:], border=False)
        pixels = self.add("Reshape", pixels, self.number(-1, side, side))

        cells = self.add("Squeeze", self.add("Cast", highest, to=TensorProto.UINT8), self.number(1))
        blocks = self.add("Unsqueeze", cells, self.number(2, 4))
        blocks = self.add("Tile", blocks, self.number(1, 1, side, 1, side))  # OpenVINO is slow at Expand
        lines = self.add("Gather", mixed, self.number(0, 2, 1, 3), axis=2)
        lines = self.add("Add", lines, self.constant([[0, 0, line, 0] for line in range(side)]))  # (K, side, 4)
        return self.add("ScatterND", blocks, lines, pixels), cells

    def weights(self, positions: npt.NDArray[np.float64]) -> str:
        """Add the constant ``(4, P * P)``: the share of each corner at ``P`` x ``P`` positions (0 to 1) of a cell."""
        line = np.stack([1.0 - positions, positions])
        name = f"tail_weights_{len(self.constants)}"
        self.constants[name] = np.einsum("as,bt->abst", line, line).reshape(4, -1).astype(np.float32)
        return name


def _levels(factor: int) -> tuple[int, ...]:
    """Return how a cell is divided: large ones in two steps, since a border crosses few parts of a cell."""
    return (4, factor // 4) if factor % 4 == 0 and factor > 8 else (factor,)


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
