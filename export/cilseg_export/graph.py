"""Finding one's way in an exported graph: its layers, what comes before the first and after the last of them.

*Layers* are the nodes with weights to multiply (``Conv``, ``Gemm``, ``MatMul``). The *stem* is what runs before the
first layer (normalisation and padding), the *tail* the last layers (the classifiers) and what follows: upsampling,
arg-max, soft-max.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cilseg.errors import ArtifactError

LAYER_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Anatomy:
    """Names of the nodes of a graph by their place in it."""

    stem: frozenset[str]
    """Nodes without a layer before them (the sizes that the tail is cropped to are read there, too)."""
    layers: dict[str, str]
    """Node of every layer -> readable name (from its weights), in the order of the graph; classifiers included."""
    classifiers: frozenset[str]
    """Layers without another layer after them."""
    tail: frozenset[str]
    """The classifiers and everything after them."""
    scores: str
    """Tensor that the arg-max reads: logits per pixel ``(N, C, H, W)``."""


def anatomy(model: Any) -> Anatomy:
    """Take a graph of the graph contract (an ``onnx.ModelProto``) apart.

    Raises:
        ArtifactError: no layer or no arg-max, or a node without a name of its own.
    """
    nodes = list(model.graph.node)
    names = [node.name for node in nodes]
    if "" in names or len(set(names)) != len(names):
        raise ArtifactError("Nodes of the graph have no names of their own. Export the version again: cilseg export")
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = {n.name: _readable(n, weights) for n in nodes if n.op_type in LAYER_TYPES and weights & set(n.input)}
    arg_max = [n for n in nodes if n.op_type == "ArgMax"]
    if not layers or len(arg_max) != 1:
        raise ArtifactError(
            f"The graph has {len(layers)} layers with weights and {len(arg_max)} arg-max nodes, expected some and one. "
            "Export the version with its mask: cilseg export"
        )
    after = _reached(nodes, layers, forward=True)
    before = _reached(nodes, layers, forward=False)
    classifiers = frozenset(layers) - before
    return Anatomy(
        stem=frozenset(names) - after - frozenset(layers),
        layers=layers,
        classifiers=classifiers,
        tail=_reached(nodes, classifiers, forward=True) | classifiers,
        scores=arg_max[0].input[0],
    )


def _reached(nodes: list[Any], start: Iterable[str], *, forward: bool) -> frozenset[str]:
    """Return the nodes after (before) those of ``start``, without ``start`` unless one of it is after another."""
    inputs: Callable[[Any], Iterable[str]] = lambda n: n.input if forward else n.output  # noqa: E731
    outputs: Callable[[Any], Iterable[str]] = lambda n: n.output if forward else n.input  # noqa: E731
    first, tensors, found = set(start), set[str](), set[str]()
    for node in nodes if forward else reversed(nodes):
        if tensors & set(inputs(node)):
            found.add(node.name)
        if node.name in first or node.name in found:
            tensors.update(name for name in outputs(node) if name)
    return frozenset(found)


def _readable(node: Any, weights: set[str]) -> str:
    name = next(name for name in node.input if name in weights)
    return str(name).removeprefix("model.").removesuffix(".weight")
