"""The second graph, for readers that know neither our input nor our metadata: float32 NCHW in, class scores out.

Readers and what they do before the graph runs (the graph's input is the same in all three: RGB from 0 to 1):

- Ultralytics divides by 255; names, stride, task, batch and imgsz are Python literals;
- QGIS Deepness divides by 255, then applies ``standardization_mean`` and ``standardization_std`` (0 and 1 here), and
  reads every value as JSON;
- Intel ModelAPI takes BGR from 0 to 255: ``reverse_input_channels``, ``mean_values`` and ``scale_values`` (0 and 255
  here) bring it to the same; its labels leave out the background.

Normalisation with the network's own mean and deviation is inside. The input has a fixed size, as two of the three want.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cilseg.bundle import Manifest
from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, InputError
from cilseg_export.metadata import GraphMetadata
from cilseg_export.onnx_export import (
    OPSET,
    ExportRecord,
    count_classes,
    name_axes,
    run_exporter,
    write_graph,
)
from cilseg_export.runtime import open_model
from cilseg_export.torch_session import SegmentationGraph, check_ready

INPUT, OUTPUT = "images", "scores"
SIDE_PX = 512
_MIN_SIDE_PX = 32


class CompatGraph(nn.Module):
    """RGB ``(N, 3, S, S)`` float32 from 0 to 1 to soft-max scores ``(N, C, S, S)``."""

    def __init__(self, graph: SegmentationGraph) -> None:
        super().__init__()
        self.network = graph
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network.stride_logits((images * 255.0).permute(0, 2, 3, 1))
        return self.network.upsample(logits, images.shape[2], images.shape[3]).softmax(dim=1)


def export_compat(
    graph: SegmentationGraph, path: Path, *, manifest: Manifest, version_digest: str, side_px: int = SIDE_PX
) -> ExportRecord:
    """Write the compat graph of ``graph`` to ``path``, checked and atomically.

    Args:
        graph: as for ``export_onnx``.
        path: where the file goes; its folder must exist.
        manifest: of the version being exported.
        version_digest: that version's digest.
        side_px: height and width of the input.

    Raises:
        InputError: ``side_px`` is too small or no multiple of the output stride; the graph is not ready.
        ArtifactError: as ``export_onnx``.
        OSError: no room; ``path`` is as it was.
    """
    stride = manifest.architecture.output_stride
    if side_px < _MIN_SIDE_PX or side_px % stride:
        raise InputError(
            f"The compat graph has a fixed square input; its side has to be a multiple of {stride} from {_MIN_SIDE_PX} "
            f"px on, got {side_px}. Try {max(_MIN_SIDE_PX, round(side_px / stride) * stride)}."
        )
    started = time.perf_counter()
    device = check_ready(graph)
    n_classes = count_classes(graph, manifest)
    example = torch.zeros((1, 3, side_px, side_px), device=device)
    proto = run_exporter(CompatGraph(graph).eval(), example, OPSET, inputs=[INPUT], outputs=[OUTPUT], dynamic=False)
    metadata = GraphMetadata.of_version(
        manifest, version_digest, outputs=(OUTPUT,), opset=OPSET, exporter=f"torch {torch.__version__} dynamo"
    )
    dims: dict[str, tuple[int | str, ...]] = {
        INPUT: (1, 3, side_px, side_px),
        OUTPUT: (1, n_classes, side_px, side_px),
    }
    name_axes(proto, dims)
    import onnx

    onnx.helper.set_model_props(
        proto, metadata.to_props() | dialects(metadata.class_set, stride=stride, side_px=side_px)
    )
    return write_graph(proto, metadata, path, n_classes=n_classes, started=started, contract=dims)


def dialects(class_set: ClassSet, *, stride: int, side_px: int) -> dict[str, str]:
    """Return what Ultralytics, QGIS Deepness and Intel ModelAPI read, for a square input of ``side_px``."""
    names = dict(enumerate(class_set.names))
    return {
        # Ultralytics: Python literals
        "names": repr(names),
        "task": "semantic",
        "stride": str(stride),
        "batch": "1",
        "imgsz": repr([side_px, side_px]),
        "channels": "3",
        "args": repr({"dynamic": False, "nms": False}),
        # QGIS Deepness: JSON
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps({str(i): name for i, name in names.items()}, ensure_ascii=False),
        "tile_size": str(side_px),
        "tiles_size": str(side_px),
        "standardization_mean": json.dumps([0.0, 0.0, 0.0]),
        "standardization_std": json.dumps([1.0, 1.0, 1.0]),
        # Intel ModelAPI: a key is the path joined by a space, a list is separated by spaces
        "model_info model_type": "Segmentation",
        "model_info labels": " ".join(name.replace(" ", "_") for name in class_set.foreground),
        "model_info mean_values": "0 0 0",
        "model_info scale_values": "255 255 255",
        "model_info reverse_input_channels": "YES",
        "model_info resize_type": "standard",
        "model_info layout": f"{INPUT}:NCHW",
    }


class CompatRuntime:
    """Asks a compat graph like one of the graph contract: uint8 NHWC in, ``mask`` and ``confidence`` out.

    Raises:
        ArtifactError: onnxruntime cannot load it.
    """

    outputs = ("mask", "confidence")

    def __init__(self, path: Path) -> None:
        import onnx
        import onnxruntime

        self._session = open_model(onnx.load(path))
        self.description = {
            "runtime": "onnxruntime",
            "version": str(onnxruntime.__version__),
            "device": "CPU",
            "precision": "as in the file",
        }

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Answer ``(N, S, S, 3)`` uint8 RGB, one image at a time.

        Raises:
            ArtifactError: onnxruntime fails on this input.
        """
        floats = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255.0)
        try:
            scores = np.concatenate([self._session.run([OUTPUT], {INPUT: image[None]})[0] for image in floats])
        except Exception as exc:  # onnxruntime raises a dozen unrelated classes here
            raise ArtifactError(f"onnxruntime failed on images of shape {images.shape}: {exc}") from exc
        return {"mask": scores.argmax(axis=1).astype(np.uint8), "confidence": scores.max(axis=1)}
