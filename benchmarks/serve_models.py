"""Models for the benchmarks of the embedded runtime, with random weights, so that nothing has to be fetched."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cilseg.bundle import Architecture, Manifest, Preprocessing
from cilseg.classes import ClassSet
from cilseg.models.inference import InferenceGraph
from cilseg.models.segmenter import SegmentationModel
from cilseg_export.onnx_export import export_onnx
from cilseg_export.torch_session import SegmentationGraph

CLASSES = ClassSet.base([f"class{i}" for i in range(1, 21)])
PREPROCESSING = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), short_side_px=None)
RESNET18 = Architecture(
    backbone="resnet18",
    output_stride=16,
    head_channels=256,
    head_dilations=(6, 12, 18),
    classes_per_step=(len(CLASSES),),
)
STRIDE = 8
DIGEST = "sha256:" + "0" * 64


def deeplab() -> SegmentationModel:
    """Return ResNet-18 with the DeepLabV3 head for 21 classes, the same random weights every time."""
    torch.manual_seed(0)
    return SegmentationModel(RESNET18, PREPROCESSING).eval()


def export_deeplab(path: Path) -> Path:
    """Write it as ONNX, with mask and logits."""
    graph = InferenceGraph(deeplab(), PREPROCESSING, outputs=("mask", "logits")).eval()
    return _export(graph, path)


class SmallReach(nn.Module):
    """A network of stride 8 whose answer at a pixel depends on less than 64 px around it; no pooled branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 24, 32, 48)
        self.body = nn.Sequential(
            *(
                layer
                for a, b in itertools.pairwise(widths)
                for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU())
            ),
            nn.Conv2d(widths[-1], 48, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(48, len(CLASSES), 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scaled = (image.float() - 128) / 64
        logits: Tensor = self.body(F.pad(scaled, (0, -width % STRIDE, 0, -height % STRIDE)))
        return logits

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        full = F.interpolate(logits, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return full[..., :height, :width]


def export_small_reach(path: Path) -> Path:
    """Write the network of small reach as ONNX, with mask and logits."""
    return _export(InferenceGraph(SmallReach().eval(), PREPROCESSING, outputs=("mask", "logits")).eval(), path)


def _export(graph: SegmentationGraph, path: Path) -> Path:
    manifest = Manifest(
        classes=CLASSES.to_json(),
        architecture=RESNET18,
        preprocessing=PREPROCESSING,
        method="random",
        seed=0,
        created_at="2026-01-01T00:00:00Z",
    )
    export_onnx(graph, path, manifest=manifest, version_digest=DIGEST)
    return path
