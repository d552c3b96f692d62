"""What really flows through a graph: the largest values of every float tensor on real images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg_export.runtime import open_model

Images = Iterable[npt.NDArray[np.uint8]]


def largest_values(model: Any, images: Images) -> dict[str, float]:
    """Return for every float tensor that a node computes the largest absolute value over ``images``.

    Args:
        model: an ``onnx.ModelProto`` of the graph contract, with the types of its tensors.
        images: real images ``(H, W, 3)`` uint8 RGB as the network sees them.
    """
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    infos = {info.name: info for info in model.graph.value_info}
    given = {output.name for output in model.graph.output}
    computed = [name for node in model.graph.node for name in node.output if name in infos and name not in given]
    names = [n for n in computed if infos[n].type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    for name in names:
        norm = onnx.helper.make_node("ReduceMax", [f"{name}::size"], [f"{name}::largest"], keepdims=0)
        watched.graph.node.extend([onnx.helper.make_node("Abs", [name], [f"{name}::size"]), norm])
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}::largest", onnx.TensorProto.FLOAT, []))
    session = open_model(watched, optimise=False)
    largest = dict.fromkeys(names, 0.0)
    for image in images:
        answers = session.run([f"{name}::largest" for name in names], {"image": image[None]})
        for name, value in zip(names, answers, strict=True):
            largest[name] = max(largest[name], float(value)) if np.isfinite(value) else float("inf")
    return largest


def tensors_of(model: Any, names: list[str], images: Images) -> list[list[npt.NDArray[np.float32]]]:
    """Return for every image the values of the float tensors ``names``."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {output.name for output in model.graph.output}
    for name in names:
        if name not in given:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_model(watched)
    return [session.run(names, {"image": image[None]}) for image in images]
