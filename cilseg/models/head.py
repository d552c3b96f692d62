"""DeepLabV3 head and the localizer (spec: DeepLabV3, arXiv 1706.05587; variant of MiB and WILSON, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.01


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid with an added pooled branch.

    One 1x1 and one dilated 3x3 convolution per entry of ``dilations``, concatenated; the pooled branch is added after
    the reduction, not concatenated. Maps ``(B, in_channels, h, w)`` to ``(B, out_channels, h, w)``.

    Args:
        pool_window: None: the pooled branch is the global mean. An integer: in evaluation mode it is a sliding
            average of that window with replicate padding, as in the published code (training always pools globally).
        final_activation: whether the output passes a leaky ReLU; a cosine classifier wants values of both signs.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_channels: int = 256,
        out_channels: int = 256,
        dilations: Sequence[int] = (6, 12, 18),
        pool_window: int | None = None,
        final_activation: bool = True,
    ) -> None:
        super().__init__()
        self.pool_window = pool_window
        self.final_activation = final_activation
        self.map_convs = nn.ModuleList(
            [nn.Conv2d(in_channels, hidden_channels, 1, bias=False)]
            + [nn.Conv2d(in_channels, hidden_channels, 3, padding=d, dilation=d, bias=False) for d in dilations]
        )
        self.map_bn = nn.BatchNorm2d(hidden_channels * len(self.map_convs))
        self.global_pooling_conv = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.global_pooling_bn = nn.BatchNorm2d(hidden_channels)
        self.red_conv = nn.Conv2d(hidden_channels * len(self.map_convs), out_channels, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(hidden_channels, out_channels, 1, bias=False)
        self.red_bn = nn.BatchNorm2d(out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE))

    def forward(self, body: Tensor) -> Tensor:
        out = torch.cat([conv(body) for conv in self.map_convs], dim=1)
        out = self.red_conv(F.leaky_relu(self.map_bn(out), LEAKY_SLOPE))
        pooled = self.global_pooling_conv(self._pool(body))
        pooled = self.pool_red_conv(F.leaky_relu(self.global_pooling_bn(pooled), LEAKY_SLOPE))
        out = self.red_bn(out + pooled)
        return F.leaky_relu(out, LEAKY_SLOPE) if self.final_activation else out

    def _pool(self, body: Tensor) -> Tensor:
        if self.training or self.pool_window is None:
            return body.mean(dim=(2, 3), keepdim=True)
        height, width = body.shape[-2:]
        kernel = (min(self.pool_window, height), min(self.pool_window, width))
        pooled = F.avg_pool2d(body, kernel, stride=1)
        top, left = (height - pooled.shape[-2]) // 2, (width - pooled.shape[-1]) // 2
        bottom, right = height - pooled.shape[-2] - top, width - pooled.shape[-1] - left
        return F.pad(pooled, (left, right, top, bottom), mode="replicate")


class Localizer(nn.Sequential):
    """Three convolutions from the body features to one map per class, background included (WILSON, section 3.2).

    Maps ``(B, in_channels, h, w)`` to ``(B, n_classes, h, w)``. Trained anew in every step, unused at inference.
    """

    def __init__(self, in_channels: int, *, n_classes: int, hidden_channels: int = 256) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(hidden_channels, n_classes, 1),
        )


class StepClassifier(nn.Module):
    """One 1x1 convolution per step, their outputs concatenated; step 0 holds background as channel 0.

    Maps ``(B, in_channels, h, w)`` to ``(B, sum(classes_per_step), h, w)``.
    """

    def __init__(self, in_channels: int, classes_per_step: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(in_channels, n, 1) for n in classes_per_step)

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        return tuple(step.out_channels for step in self.steps if isinstance(step, nn.Conv2d))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([step(features) for step in self.steps], dim=1)
