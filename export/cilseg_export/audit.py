"""Can TensorRT and OpenVINO read this graph? Its operators against the lists that both projects publish.

The lists with version and source are in ``operators.json``. Beside the names the audit checks what the lists say about
arguments that our graphs use: modes of ``Resize``, zero points of quantised tensors, ``uint8`` at the border alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import numpy as np

from cilseg.errors import ArtifactError, FaultCollector

Engine = Literal["tensorrt", "openvino"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
_RESIZE: Mapping[str, Collection[bytes | int]] = {
    "mode": {b"nearest", b"linear"},
    "coordinate_transformation_mode": {
        b"half_pixel",
        b"pytorch_half_pixel",
        b"tf_half_pixel_for_nn",
        b"asymmetric",
        b"align_corners",
    },
    "keep_aspect_ratio_policy": {b"stretch"},
    "antialias": {0},
}


@dataclass(frozen=True)
class OperatorList:
    """What one engine publishes: operators of the default domain, range of opsets, version and source."""

    name: str
    version: str
    source: str
    opset: tuple[int, int]
    operators: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """A node that an engine does not take, and why."""

    engine: Engine
    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.operator}): {self.reason}"


@cache
def operator_lists() -> Mapping[Engine, OperatorList]:
    """Return the published lists by engine."""
    raw = json.loads(files("cilseg_export").joinpath("operators.json").read_text(encoding="utf-8"))
    return {
        engine: OperatorList(
            **{k: raw[engine][k] for k in ("name", "version", "source")},
            opset=(raw[engine]["opset"][0], raw[engine]["opset"][1]),
            operators=frozenset(raw[engine]["operators"]),
        )
        for engine in ENGINES
    }


def audit(model: Any) -> dict[Engine, tuple[Finding, ...]]:
    """Return for each engine the nodes of an ``onnx.ModelProto`` that it does not take; empty tuples are good."""
    return {engine: tuple(_findings(model, engine, operator_lists()[engine])) for engine in ENGINES}


def refuse_unsupported(model: Any, *, engines: tuple[Engine, ...] = ENGINES) -> dict[str, str]:
    """Refuse a graph that one of ``engines`` cannot read; return for the record what each says about it.

    Raises:
        ArtifactError: names every node, its operator, the engine and the list that says so.
    """
    findings, lists = audit(model), operator_lists()
    faults = FaultCollector("Operators of the exported graph")
    for engine in engines:
        for finding in findings[engine]:
            faults.add(f"{finding} ({lists[engine].name} {lists[engine].version}, {lists[engine].source})")
    faults.raise_if_any(
        "Use another backbone, or change the operation that the node comes from, and export again.", error=ArtifactError
    )
    return {
        engine: "every operator is on the list of " + f"{lists[engine].name} {lists[engine].version}"
        if not found
        else f"{len(found)} nodes are not taken, first: {found[0]}"
        for engine, found in findings.items()
    }


def _findings(model: Any, engine: Engine, published: OperatorList) -> Iterator[Finding]:
    low, high = published.opset
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not low <= opset <= high:
        yield Finding(engine, "(graph)", f"opset {opset}", f"opsets {low} to {high} are read")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Finding(engine, node.name, f"{node.domain}.{node.op_type}", "an operator of a foreign domain")
        elif node.op_type not in published.operators:
            yield Finding(engine, node.name, node.op_type, "not on the list of supported operators")
        elif engine == "tensorrt" and (reason := _tensorrt_reason(node, constants)):
            yield Finding(engine, node.name, node.op_type, reason)


def _tensorrt_reason(node: Any, constants: Mapping[str, Any]) -> str:
    """Return what TensorRT's list says against the arguments of a node, or an empty text."""
    import onnx

    if node.op_type == "Resize":
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if attribute.name in _RESIZE and value not in _RESIZE[attribute.name]:
                return f"{attribute.name}={value.decode() if isinstance(value, bytes) else value} is not supported"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2] in constants:
        zero_point = constants[node.input[2]]
        if zero_point.data_type == onnx.TensorProto.UINT8 or np.any(onnx.numpy_helper.to_array(zero_point)):
            return "quantised with a zero point; export with --symmetric for TensorRT"
    bias = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if bias is not None and bias.data_type == onnx.TensorProto.INT32:
        return "a bias in 32-bit integers; export with --symmetric for TensorRT"
    return ""
