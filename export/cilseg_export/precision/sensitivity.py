"""How much each layer loses when it alone is quantised.

One graph with a switch per layer: ``x + switch * (q(x) - x)`` for its input and its weights, where ``q`` rounds to 8
bits and back. Each layer is switched on alone, and the scores of the pixels are compared with those of the float graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg_export.precision.int8 import quantisable_layers
from cilseg_export.precision.source import FloatGraph
from cilseg_export.runtime import open_model

_SWITCHES = "cilseg::switches"
N_IMAGES = 4


@dataclass(frozen=True)
class LayerLoss:
    """What quantising one layer alone does."""

    node: str
    layer: str
    """Readable name, from its weights."""
    operator: str
    score_error: float
    """Root mean square of the error of the pixels' scores, as share of the root mean square of the centred scores."""
    labels_changed: float
    """Share of the pixels with another label."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layer_losses(
    source: FloatGraph, ranges: Any, images: Sequence[npt.NDArray[np.uint8]], *, symmetric: bool = False
) -> list[LayerLoss]:
    """Return the loss of every layer that may be quantised, the worst first.

    Args:
        source: the float32 graph.
        ranges: of its activations, from the calibration.
        images: a few of the calibration images; :data:`N_IMAGES` of them, evenly spread, are used.
        symmetric: see :func:`cilseg_export.precision.int8.quantise`.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(N_IMAGES, len(images))).round().astype(int))
    layers = quantisable_layers(source)
    session = open_model(_with_switches(source, ranges, list(layers), symmetric=symmetric))
    error, spread = np.zeros(len(layers)), 0.0
    changed, pixels = np.zeros(len(layers)), 0
    for image in (images[row] for row in rows):
        expected = _scores(session, source, image, np.zeros(len(layers), np.float32))
        labels = expected.argmax(axis=1)
        spread += float(((expected - expected.mean(axis=1, keepdims=True)) ** 2).sum())
        pixels += labels.size
        for index in range(len(layers)):
            given = _scores(session, source, image, np.eye(len(layers), dtype=np.float32)[index])
            error[index] += float(((given - expected) ** 2).sum())
            changed[index] += int((given.argmax(axis=1) != labels).sum())
    operators = {node.name: node.op_type for node in source.model.graph.node}
    losses = [
        LayerLoss(
            node=node,
            layer=layer,
            operator=operators[node],
            score_error=float(np.sqrt(error[index] / max(spread, 1e-30))),
            labels_changed=float(changed[index] / pixels),
        )
        for index, (node, layer) in enumerate(layers.items())
    ]
    return sorted(losses, key=lambda loss: -loss.score_error)


def _scores(
    session: Any, source: FloatGraph, image: npt.NDArray[np.uint8], switches: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    (scores,) = session.run([source.parts.scores], {"image": image[None], _SWITCHES: switches})
    return np.asarray(scores)


def _with_switches(source: FloatGraph, ranges: Any, layers: Sequence[str], *, symmetric: bool) -> Any:
    """Return the float graph with a switch per layer as second input, and the scores of the pixels as output."""
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    model = ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.FLOAT, [len(layers)]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(source.parts.scores, TensorProto.FLOAT, None))
    constants: dict[str, npt.NDArray[Any]] = {}
    nodes: list[Any] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def mixed(value: str, rounded: str, switch: str, output: str) -> str:
        difference = add("Sub", [rounded, value], f"{output}::difference")
        return add("Add", [value, add("Mul", [difference, switch], f"{output}::part")], output)

    for node in list(graph.node):
        if node.name in layers:
            prefix = f"cilseg::{node.name}"
            constants[f"{prefix}::index"] = np.array([layers.index(node.name)], dtype=np.int64)
            switch = add("Gather", [_SWITCHES, f"{prefix}::index"], f"{prefix}::switch")
            for index, name in enumerate(node.input[:2]):
                if name in weights:
                    rounded = f"{prefix}::weights"
                    axis = 1 if node.op_type in ("ConvTranspose", "MatMul") else 0
                    constants[rounded] = _rounded_weights(weights[name], axis=axis)
                elif name in ranges:
                    scale, zero = f"{prefix}::scale", f"{prefix}::zero"
                    constants[scale], constants[zero] = _quantisation(*ranges[name].range_value, symmetric=symmetric)
                    small = add("QuantizeLinear", [name, scale, zero], f"{prefix}::small")
                    rounded = add("DequantizeLinear", [small, scale, zero], f"{prefix}::rounded")
                else:
                    continue
                node.input[index] = mixed(name, rounded, switch, f"{prefix}::input{index}")
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def _quantisation(low: Any, high: Any, *, symmetric: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return scale and zero point of a range."""
    least, most = min(float(np.min(low)), 0.0), max(float(np.max(high)), 0.0)
    if symmetric:
        return np.array(max(-least, most, 1e-12) / 127.0, np.float32), np.array(0, np.int8)
    scale = max(most - least, 1e-12) / 255.0
    return np.array(scale, np.float32), np.array(round(-least / scale), np.uint8)


def _rounded_weights(weights: npt.NDArray[np.float32], *, axis: int) -> npt.NDArray[np.float32]:
    """Round weights to 8 bits and back, with a scale per channel along ``axis``."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scale = np.maximum(np.abs(weights).max(axis=others, keepdims=True), 1e-12) / 127.0
    return np.asarray(np.clip(np.round(weights / scale), -127, 127) * scale, dtype=np.float32)
