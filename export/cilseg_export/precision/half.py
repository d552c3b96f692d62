"""Float16: weights and activations of the layers; what is sensitive, or leaves the range on real images, stays float.

Kept in float32 always: the stem (normalisation of bytes), the tail (classifiers, upsampling, arg-max, soft-max: its
ties decide labels) and sums over many values (the pooled branch). The conversion itself is onnxruntime's
(``onnxruntime.transformers.float16``). Input and outputs stay as in the graph contract.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError
from cilseg_export.activations import largest_values
from cilseg_export.onnx_export import ExportRecord
from cilseg_export.precision.source import FloatGraph, read_float_graph, require_onnxruntime, write_converted

LARGEST: Final = 65504.0
"""The largest float16."""
HEADROOM: Final = 4.0
"""Values on the images looked at stay below ``LARGEST / HEADROOM``, for the images that were not."""
SMALLEST: Final = 2.0**-14
"""The smallest float16 with all its digits. A layer whose largest weight is under 16 times that would lose some."""
SENSITIVE = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "Exp", "Pow", "Sqrt"})


@dataclass(frozen=True)
class HalfRecord:
    """What was converted: goes into the record of the artifact."""

    nodes: int
    """Nodes that compute floats."""
    kept: dict[str, str]
    """Node that stays float32 -> why."""
    largest_value: float
    """Largest activation of a converted node on the images."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def convert_to_half(
    float_path: Path, path: Path, images: Sequence[npt.NDArray[np.uint8]]
) -> tuple[ExportRecord, HalfRecord]:
    """Write the float16 form of ``float_path`` to ``path``.

    Args:
        float_path: what ``export_onnx`` wrote.
        path: where the file goes.
        images: real images ``(H, W, 3)`` uint8 RGB as the network sees them, on which the range is checked.

    Raises:
        InputError: no images.
        ArtifactError: the float32 file is damaged or not ours.
        MissingDependencyError: onnxruntime is not installed.
        OSError: no room; ``path`` is as it was.
    """
    require_onnxruntime()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    if not images:
        raise InputError("The range of float16 is checked on real images, got none. Give some with --images.")
    started = time.perf_counter()
    source = read_float_graph(float_path)
    largest = largest_values(source.model, images)
    kept = _kept(source, largest, blocked=frozenset(DEFAULT_OP_BLOCK_LIST))
    half = convert_float_to_float16(
        _without_constant_types(source.model), keep_io_types=True, op_block_list=[], node_block_list=sorted(kept)
    )
    _drop_round_trips(half)
    record = write_converted(half, source, path, precision="float16", started=started)
    computed = {name: node.name for node in source.model.graph.node for name in node.output}
    values = [value for tensor, value in largest.items() if computed[tensor] not in kept]
    float_nodes = {computed[tensor] for tensor in largest} | set(kept)
    return record, HalfRecord(len(float_nodes), kept, max(values, default=0.0))


def _kept(source: FloatGraph, largest: dict[str, float], *, blocked: frozenset[str]) -> dict[str, str]:
    """Return the nodes that stay float32, each with the reason."""
    from onnx import TensorProto, numpy_helper

    limit = LARGEST / HEADROOM
    weights = {
        t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0.0))
        for t in source.model.graph.initializer
        if t.data_type == TensorProto.FLOAT
    }
    kept: dict[str, str] = {}
    for node in source.model.graph.node:
        own = [weights[name] for name in node.input if name in weights]
        size = max((largest.get(name, weights.get(name, 0.0)) for name in (*node.input, *node.output)), default=0.0)
        if node.name in source.parts.stem:
            kept[node.name] = "before the first layer"
        elif node.name in source.parts.tail:
            kept[node.name] = "classifier or after it"
        elif node.op_type in SENSITIVE | blocked:
            kept[node.name] = f"{node.op_type} is sensitive"
        elif not size <= limit:
            kept[node.name] = f"values up to {size:.4g}, float16 ends at {LARGEST:g} (kept from {limit:g} on)"
        elif node.name in source.parts.layers and 0 < own[0] < 16 * SMALLEST:
            kept[node.name] = f"weights up to {own[0]:.2g}, float16 loses digits under {SMALLEST:.2g}"
    return kept


def _without_constant_types(model: Any) -> Any:
    """Return a copy without value infos of constants: the converter takes those for activations and casts them."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(info for info in model.graph.value_info if info.name not in constants)
    return copy


def _drop_round_trips(model: Any) -> None:
    """Join neighbours that both stay float32 directly; the converter puts a float16 between them, which rounds."""
    from onnx import TensorProto

    targets = {
        node.output[0]: (node, next(a.i for a in node.attribute if a.name == "to"))
        for node in model.graph.node
        if node.op_type == "Cast"
    }
    down = {name: node.input[0] for name, (node, to) in targets.items() if to == TensorProto.FLOAT16}
    up = {name: node.input[0] for name, (node, to) in targets.items() if to == TensorProto.FLOAT}
    direct = {name: down[middle] for name, middle in up.items() if middle in down}
    outputs = {output.name for output in model.graph.output}
    renamed = {direct[name]: name for name in outputs & direct.keys()}  # the tensor itself becomes the output
    for node in list(model.graph.node):
        if node.output[0] in outputs & direct.keys():
            model.graph.node.remove(node)
            continue
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(direct.get(name, name), direct.get(name, name))
        for index, name in enumerate(node.output):
            node.output[index] = renamed.get(name, name)
    while True:  # casts that nothing reads any more
        used = {name for node in model.graph.node for name in node.input} | outputs
        idle = [node for node in model.graph.node if node.op_type == "Cast" and node.output[0] not in used]
        if not idle:
            return
        for node in idle:
            model.graph.node.remove(node)
