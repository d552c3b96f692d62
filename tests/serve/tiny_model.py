"""A hand-made model whose answers are known: dark pixels are background, else the strongest channel wins."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from cilseg.bundle import Architecture, Manifest, Preprocessing
from cilseg.classes import ClassSet

CLASSES = ClassSet.base(["red", "green", "blue"])
WEIGHT = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
BIAS = np.array([100, 0, 0, 0], dtype=np.float32)


def expected_logits(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the model computes before arg-max, ``(H, W, 4)``."""
    return image.astype(np.float32) @ WEIGHT + BIAS


def expected_mask(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return expected_logits(image).argmax(axis=-1).astype(np.uint8)


def make_onnx(
    *,
    confidence: bool = False,
    logits: bool = False,
    input_name: str = "image",
    offset: int = 0,
    darkest: float = 100,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Build the model with ``onnx.helper``; ``offset`` shifts the ids, to make an answer out of range.

    ``darkest`` is how bright a pixel must be to be no background.
    """
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits_nhwc"]),
        helper.make_node("ArgMax", ["logits_nhwc"], ["ids"], axis=-1, keepdims=0),
        helper.make_node("Add", ["ids", "offset"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["mask"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", "H", "W"])]
    if confidence:
        nodes += [
            helper.make_node("Softmax", ["logits_nhwc"], ["probability"], axis=-1),
            helper.make_node("ReduceMax", ["probability", "last_axis"], ["confidence"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", "H", "W"]))
    if logits:
        nodes.append(helper.make_node("Transpose", ["logits_nhwc"], ["logits"], perm=[0, 3, 1, 2]))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, "H", "W"]))
    constants = {
        "weight": WEIGHT,
        "bias": np.array([darkest, 0, 0, 0], dtype=np.float32),
        "offset": np.array(offset, np.int64),
        "last_axis": np.array([-1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    return bytes(model.SerializeToString())


def make_manifest(short_side_px: int | None = None, *, seed: int = 0, classes: ClassSet = CLASSES) -> Manifest:
    return Manifest(
        classes=classes.to_json(),
        architecture=Architecture(
            backbone="none", output_stride=16, head_channels=1, head_dilations=(1,), classes_per_step=(4,)
        ),
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=short_side_px),
        method="hand-made",
        seed=seed,
        created_at="2025-01-01T00:00:00Z",
    )


def write_attachment(bundle: Path, digest: str, model: bytes, metadata: dict[str, Any]) -> None:
    folder = bundle / "attachments"
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    sidecar = {
        "version_digest": digest,
        "sha256": "sha256:" + hashlib.sha256(model).hexdigest(),
        "kind": "onnx",
        "metadata": metadata,
    }
    (folder / "model.onnx.json").write_text(json.dumps(sidecar))
