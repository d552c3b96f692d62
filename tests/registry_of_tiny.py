"""The hand-made model of the runtime's tests as an exported version of a registry."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cilseg.bundle import write_manifest
from cilseg.registry import Registry, Version
from tests.serve.tiny_model import CLASSES, make_manifest, make_onnx


def register_tiny(
    registry: Registry, bundle: Path, *, name: str = "tiny", swap: bool = False, parity: Any = None
) -> Version:
    """Register the model with its ONNX file attached; ``swap`` exchanges red and green in it."""
    bundle.mkdir()
    (bundle / "checkpoint.safetensors").write_bytes(b"no weights: the runtime never reads them")
    (bundle / "labels.txt").write_text("\n".join(CLASSES.names))
    manifest = make_manifest(16).model_copy(update={"seed": zlib.crc32(f"{name} {swap}".encode())})
    write_manifest(bundle, manifest)
    version = registry.register(name, bundle)
    payload = {
        "classes": CLASSES.to_json(),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "outputs": ["mask", "confidence"],
        "precision": "float32",
    }
    model = onnx.load_from_string(make_onnx(confidence=True, metadata={"cilseg.manifest": json.dumps(payload)}))
    if swap:
        (weight,) = [t for t in model.graph.initializer if t.name == "weight"]
        values = onnx.numpy_helper.to_array(weight)[[1, 0, 2]]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), "weight"))
    verdict = {"passed": True, "runtime": {"runtime": "onnxruntime"}} if parity is None else parity
    registry.attach(version, "model.onnx", model.SerializeToString(), kind="onnx", metadata={"parity": verdict})
    return version
