"""The model of the serving benchmarks: an untrained DeepLabV3 on a ResNet-18, exported and quantised to INT8.

Speed does not depend on what the weights say, so nothing is trained. ``--ref`` of the benchmarks takes another model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from cilseg.bundle import Manifest, write_manifest
from cilseg.registry import Registry, Version

NAME = "resnet18"
SIDE_PX = 512
CLASSES = ("bird", "cat", "dog", "horse")


def make_version(registry: Registry, *, int8: bool = True) -> Version:
    """Register the model with its exported graph; ``int8``: :func:`to_int8` of it."""
    from cilseg.classes import ClassSet
    from cilseg.config import load_config
    from cilseg.models.build import new_model, save_weights
    from cilseg.models.inference import InferenceGraph
    from cilseg_export.onnx_export import export_onnx

    class_set = ClassSet.base(CLASSES)
    config = load_config("mobilenetv2", ["model.backbone=resnet18", "model.weights=none", "model.output_stride=16"])
    model = new_model(config.model, class_set, seed=0)
    model.eval()
    manifest = Manifest(
        classes=class_set.to_json(),
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        method="untrained",
        seed=0,
        created_at="2026-01-01T00:00:00+00:00",
    )
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        bundle.mkdir()
        save_weights(model, bundle)
        write_manifest(bundle, manifest)
        version = registry.register(NAME, bundle, alias="production")
        path = Path(temporary) / "model.onnx"
        graph = InferenceGraph(model, model.preprocessing)
        graph.eval()
        export_onnx(graph, path, manifest=version.manifest, version_digest=version.digest)
        if int8:
            path = to_int8(path)
        registry.attach(version, "model.onnx", path, kind="onnx", metadata={"parity": {"passed": True}})
    return version


def to_int8(path: Path) -> Path:
    """Write the INT8 form of a float32 export beside it, as ``cilseg export --precision int8`` does; return its path.

    Calibrated on noise, and with every layer but the classifiers in INT8: untrained weights have no layer to spare.
    """
    from cilseg_export.precision.calibration import activation_ranges
    from cilseg_export.precision.int8 import quantise
    from cilseg_export.precision.source import read_float_graph, write_converted

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(8)]
    source = read_float_graph(path)
    target = path.with_suffix(".int8.onnx")
    write_converted(quantise(source, activation_ranges(source, images)), source, target, precision="int8")
    return target
