"""The segmentation network: backbone, DeepLabV3 head, one classifier per step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cilseg.bundle import Architecture, Preprocessing
from cilseg.models.backbone import Backbone
from cilseg.models.cosine import CosineClassifier
from cilseg.models.head import DeepLabV3Head, StepClassifier


class SegmentationModel(nn.Module):
    """Logits at output stride for any image size; pads right and bottom, never resizes.

    Shapes: image ``(B, 3, H, W)``; body ``(B, C, h, w)``; logits ``(B, n_classes, h, w)`` with ``h = ceil(H / s)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.output_stride = architecture.output_stride
        self.backbone = Backbone(architecture.backbone, output_stride=architecture.output_stride)
        self.head = DeepLabV3Head(
            self.backbone.channels,
            hidden_channels=architecture.head_channels,
            out_channels=architecture.head_channels,
            dilations=architecture.head_dilations,
            final_activation=architecture.classifier == "linear",
        )
        kind = StepClassifier if architecture.classifier == "linear" else CosineClassifier
        self.classifier = kind(architecture.head_channels, architecture.classes_per_step)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self._norm_frozen = False

    @property
    def n_classes(self) -> int:
        return sum(self.classifier.classes_per_step)

    def normalise(self, image: Tensor) -> Tensor:
        """Map RGB ``(B, 3, H, W)`` on 0-255, any dtype, to normalised float32, padded to the output stride."""
        x = (image.float() - self.mean) / self.std
        height, width = image.shape[-2:]
        return F.pad(x, (0, -width % self.output_stride, 0, -height % self.output_stride))

    def classify(self, body: Tensor) -> Tensor:
        """Map body features ``(B, C, h, w)`` to logits ``(B, n_classes, h, w)``."""
        logits: Tensor = self.classifier(self.head(body))
        return logits

    def stride_logits(self, x: Tensor) -> Tensor:
        """Map normalised, padded ``(B, 3, H, W)`` to logits ``(B, n_classes, H/s, W/s)``."""
        return self.classify(self.backbone(x))

    def forward(self, image: Tensor) -> Tensor:
        """Map RGB ``(B, 3, H, W)`` on 0-255 to logits at output stride, ``(B, n_classes, ceil(H/s), ceil(W/s))``."""
        return self.stride_logits(self.normalise(image))

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Upsample stride logits by the fixed factor (bilinear) and crop to ``(B, n_classes, height, width)``."""
        full = F.interpolate(logits, scale_factor=float(self.output_stride), mode="bilinear", align_corners=False)
        return full[..., :height, :width]

    def freeze_norm(self, frozen: bool = True) -> None:
        """Keep every norm layer at its running statistics, also in training mode (weights still train)."""
        self._norm_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationModel:
        super().train(mode)
        if self._norm_frozen:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def extended(self, n_new: int) -> SegmentationModel:
        """Return a copy with one more classifier of ``n_new`` channels (default initialisation); all else equal."""
        steps = (*self.architecture.classes_per_step, n_new) if n_new else self.architecture.classes_per_step
        twin = SegmentationModel(self.architecture.model_copy(update={"classes_per_step": steps}), self.preprocessing)
        result = twin.load_state_dict(self.state_dict(), strict=False)
        expected = (
            {k for k in twin.state_dict() if k.startswith(f"classifier.steps.{len(steps) - 1}.")} if n_new else set()
        )
        if set(result.missing_keys) != expected or result.unexpected_keys:
            raise AssertionError(f"state of the parent does not fit its twin: {result}")
        return twin
