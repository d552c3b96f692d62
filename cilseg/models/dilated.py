"""Dilated depthwise convolution that trains fast on the CPU.

torch's CPU backward of a depthwise convolution with dilation d > 1 falls off the fast path: 129 ms instead of about
4 ms for (16, 960, 14, 14) in bfloat16 with d = 2. Splitting the map into its d x d interleaved sub-grids (the
"a trous" identity) turns it into an undilated convolution over d*d times the batch: the same sums, the fast path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubgridConv2d(nn.Conv2d):
    """Stride-1 dilated depthwise ``Conv2d``; identical parameters and state dict, faster CPU training.

    Outside of CPU training it is exactly ``nn.Conv2d``, so exported graphs hold one ordinary convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H, W)``."""
        if not (torch.is_grad_enabled() and input.device.type == "cpu") or torch.compiler.is_compiling():
            return super().forward(input)
        dilation = int(self.dilation[0])
        batch, channels, height, width = input.shape
        pad_h, pad_w = -height % dilation, -width % dilation
        x = F.pad(input, (0, pad_w, 0, pad_h))
        rows, cols = (height + pad_h) // dilation, (width + pad_w) // dilation
        x = x.reshape(batch, channels, rows, dilation, cols, dilation).permute(0, 3, 5, 1, 2, 4)
        x = x.reshape(batch * dilation * dilation, channels, rows, cols).contiguous(memory_format=torch.channels_last)
        half = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        x = F.conv2d(x, self.weight, self.bias, padding=half, groups=self.groups)
        x = x.reshape(batch, dilation, dilation, channels, rows, cols).permute(0, 3, 4, 1, 5, 2)
        x = x.reshape(batch, channels, rows * dilation, cols * dilation)[:, :, :height, :width]
        return x.contiguous(memory_format=torch.channels_last)


def use_subgrid_convolutions(module: nn.Module) -> int:
    """Swap every eligible convolution of ``module`` in place; return how many were swapped."""
    count = 0
    for conv in module.modules():
        if type(conv) is nn.Conv2d and _eligible(conv):
            conv.__class__ = SubgridConv2d
            count += 1
    return count


def _eligible(conv: nn.Conv2d) -> bool:
    dilation = conv.dilation[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.groups > 1
        and dilation > 1
        and conv.dilation == (dilation, dilation)
        and conv.stride == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.padding == tuple(dilation * (k // 2) for k in conv.kernel_size)
        and all(k % 2 == 1 for k in conv.kernel_size)
    )
