"""Cosine classifier: the direction of a feature decides, not its length (PIFS, BMVC 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COSINE_SCALE = 10.0


class CosineConv(nn.Module):
    """``scale * cos(feature, weight)`` at every pixel; a 1x1 convolution in all but name, without bias.

    Maps ``(B, in_channels, h, w)`` to ``(B, out_channels, h, w)``, in float32 under mixed precision. ``weight`` is
    ``(out_channels, in_channels, 1, 1)`` and of any length.
    """

    def __init__(self, in_channels: int, out_channels: int, *, scale: float = COSINE_SCALE) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_parameter("bias", None)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = F.normalize(features.to(self.weight.dtype), dim=1)
            return self.scale * F.conv2d(features, F.normalize(self.weight, dim=1))


class CosineClassifier(nn.Module):
    """One :class:`CosineConv` per step, their outputs concatenated, as in the linear classifier of the models."""

    def __init__(self, in_channels: int, classes_per_step: Sequence[int], *, scale: float = COSINE_SCALE) -> None:
        super().__init__()
        self.steps = nn.ModuleList(CosineConv(in_channels, n, scale=scale) for n in classes_per_step)

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        return tuple(step.out_channels for step in self.steps if isinstance(step, CosineConv))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([step(features) for step in self.steps], dim=1)
