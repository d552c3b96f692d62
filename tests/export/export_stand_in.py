"""A small stand-in for a trained network, its manifest and images, for the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cilseg.bundle import Architecture, Manifest, Preprocessing
from cilseg.classes import ClassSet
from cilseg.models.inference import InferenceGraph
from cilseg_export.onnx_export import ExportRecord, export_onnx

STRIDE = 8


class TinyModel(nn.Module):
    """Strided convolutions, dilation and a pooled branch, padded and upsampled like the real model."""

    def __init__(self, n_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=4, padding=1),
            nn.ReLU(),
        )
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.pooled = nn.Conv2d(16, 16, 1)
        self.classifier = nn.Conv2d(16, n_classes, 1)
        nn.init.normal_(self.classifier.weight, std=6.0)
        norm = self.stem[1]
        norm.running_mean.copy_(torch.linspace(-0.2, 0.2, 8))
        norm.running_var.copy_(torch.linspace(0.5, 1.5, 8))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = F.pad((image.float() - 120.0) / 57.0, (0, -width % STRIDE, 0, -height % STRIDE))
        x = self.stem(x)
        return self.classifier(F.relu(self.dilated(x) + self.pooled(x.mean((2, 3), keepdim=True))))

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        full = F.interpolate(logits, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return full[..., :height, :width]


CLASSES = ClassSet.base(["cat", "dog", "häst"]).extend(["cow"], step=1)


def make_manifest(classes: ClassSet = CLASSES) -> Manifest:
    return Manifest(
        classes=classes.to_json(),
        architecture=Architecture(
            backbone="tiny", output_stride=STRIDE, head_channels=16, head_dilations=(2,), classes_per_step=classes.sizes
        ),
        preprocessing=Preprocessing(mean=(120, 120, 120), std=(57, 57, 57), short_side_px=48),
        method="wilson",
        parent="sha256:" + "ab" * 32,
        seed=1,
        created_at="2026-01-02T03:04:05Z",
    )


def make_graph(*outputs: str, n_classes: int = 5) -> InferenceGraph:
    torch.manual_seed(7)
    return InferenceGraph(TinyModel(n_classes).eval(), make_manifest().preprocessing, outputs=outputs or ("mask",))


def make_image(height: int, width: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """A smooth coloured scene, ``(height, width, 3)``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Exported:
    graph: InferenceGraph
    path: Path
    record: ExportRecord
    manifest: Manifest


def export_stand_in(folder: Path, *outputs: str) -> Exported:
    graph, manifest, path = make_graph(*outputs), make_manifest(), folder / "model.onnx"
    return Exported(graph, path, export_onnx(graph, path, manifest=manifest, version_digest=manifest.digest), manifest)
