"""INT8 as quantise/dequantise pairs (QDQ): weights per channel, activations with the ranges of the calibration images.

onnxruntime's quantiser does the work. The stem (normalisation of bytes), the classifiers and what follows them stay
float: the classifiers are a thousandth of the work, and quantised scores would tie. Upsampling and arg-max, which would
be a seventh of the time then, are replaced by ``tail`` where the file is for processors.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from typing import Any

from cilseg_export.precision.calibration import QUANTISED_TYPES
from cilseg_export.precision.source import FloatGraph
from cilseg_export.precision.tail import with_cell_tail


def quantisable_layers(source: FloatGraph) -> dict[str, str]:
    """Return node and readable name of every layer that may be quantised: all but the classifiers."""
    return {node: name for node, name in source.parts.layers.items() if node not in source.parts.classifiers}


def quantise(source: FloatGraph, ranges: Any, *, keep: Collection[str] = (), symmetric: bool = False) -> Any:
    """Return the INT8 form (an ``onnx.ModelProto``) of a float32 graph.

    Args:
        source: the float32 graph.
        ranges: :func:`cilseg_export.precision.calibration.activation_ranges` of it.
        keep: layers (nodes) that stay float.
        symmetric: for TensorRT: signed activations with zero point 0, float biases, plain upsampling. Else, for
            processors: unsigned with a zero point, which resolves positive values twice as finely, and a tail by cells.
    """
    import onnx
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    options: dict[str, Any] = {"WeightSymmetric": True}
    if symmetric:
        options |= {"ActivationSymmetric": True, "QuantizeBias": False}
    excluded = {node.name for node in model.graph.node if not _on_integers(node, source)} | set(keep)
    excluded |= _between(source, excluded)
    with _quiet():
        quantiser = QDQQuantizer(
            model,
            True,  # per channel
            False,  # full range of 8 bits
            QuantType.QInt8,
            QuantType.QInt8 if symmetric else QuantType.QUInt8,
            ranges,
            [],
            sorted(excluded),
            list(QUANTISED_TYPES),
            options,
        )
        quantiser.quantize_model()
    return quantiser.model.model if symmetric else with_cell_tail(quantiser.model.model)


def _on_integers(node: Any, source: FloatGraph) -> bool:
    return node.op_type in QUANTISED_TYPES and node.name not in source.parts.stem and node.name not in source.parts.tail


def _between(source: FloatGraph, excluded: Collection[str]) -> set[str]:
    """Return the nodes that would be quantised though no quantised layer feeds them: only rounding, no speed."""
    fed: set[str] = set()
    idle: set[str] = set()
    for node in source.model.graph.node:
        is_layer = node.name in source.parts.layers
        if node.name in excluded:
            continue
        if is_layer or fed & set(node.input):
            fed.update(node.output)
        else:
            idle.add(node.name)
    return idle


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the quantiser's advice on the root logger."""
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        yield
    finally:
        root.setLevel(level)
