"""Heads of the tag-supervised baselines CAM, SEAM, SS, EPS and of their affinity network, on any backbone's features.

Published widths belong to a WideResNet-38 (4096 channels, 256 of them in decoders); every width is an argument, with
a default in proportion to the width of the backbone at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cilseg.errors import InputError
from cilseg.losses.seam import correlate, correlation_input
from cilseg.losses.single_stage import with_background

_PAPER_BODY = 4096


def proportional_width(published: int, *, body_channels: int, least: int = 16) -> int:
    """A published width scaled by ``sqrt(body_channels / 4096)``, to a multiple of 8, not below ``least``.

    The root keeps decoders of small backbones useful: 256 becomes 72 for 320 body channels, 128 for 1024.
    """
    scaled = published * math.sqrt(body_channels / _PAPER_BODY)
    return max(least, 8 * round(scaled / 8))


class CamHead(nn.Module):
    """Dropout and one 1x1 convolution without bias: ``(B, D, h, w)`` to one raw map per class, ``(B, F, h, w)``.

    The spatial mean of a map is the score of its class, its positive part the class activation map.
    """

    def __init__(self, in_channels: int, *, n_foreground: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, n_foreground, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)

    def forward(self, body: Tensor) -> Tensor:
        maps: Tensor = self.classifier(self.dropout(body))
        return maps


class EpsHead(nn.Module):
    """One 1x1 convolution without bias: ``(B, D, h, w)`` to ``(B, F + 1, h, w)``, background LAST."""

    def __init__(self, in_channels: int, *, n_foreground: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, n_foreground + 1, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)

    def forward(self, body: Tensor) -> Tensor:
        maps: Tensor = self.classifier(body)
        return maps


class SeamHead(nn.Module):
    """Class maps, background first, and the same maps spread by pixel correlation (PCM, SEAM section 3.4).

    The correlation sees the image and two earlier levels without sending a gradient into them.

    Args:
        in_channels: of the body.
        level_channels: of the two levels (in the paper the inputs of the last two blocks, stride 8).
        n_foreground: F.
        level_widths: channels that the levels are reduced to; None: 64 and 128 in proportion.
        width: of the correlated features; None: 192 in proportion.
        dropout: of body channels.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        level_channels: tuple[int, int],
        n_foreground: int,
        level_widths: tuple[int, int] | None = None,
        width: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        first, second = level_widths or (
            proportional_width(64, body_channels=in_channels),
            proportional_width(128, body_channels=in_channels),
        )
        width = width or proportional_width(192, body_channels=in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, n_foreground + 1, 1, bias=False)
        self.first = nn.Conv2d(level_channels[0], first, 1, bias=False)
        self.second = nn.Conv2d(level_channels[1], second, 1, bias=False)
        self.correlated = nn.Conv2d(3 + first + second, width, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.kaiming_normal_(self.first.weight)
        nn.init.kaiming_normal_(self.second.weight)
        nn.init.xavier_uniform_(self.correlated.weight, gain=4)

    def forward(self, body: Tensor, levels: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw maps and correlated maps, each ``(B, F + 1, h, w)``.

        Args:
            body: (B, D, h, w).
            levels: two of (B, level_channels[i], h_i, w_i), resized bilinearly to the body where they differ.
            image: (B, 3, H, W) normalised.
        """
        maps = self.classifier(self.dropout(body))
        size = body.shape[-2:]
        first, second = (_resized(level.detach(), size) for level in levels)
        small = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
        features = torch.cat([small, self.first(first).relu(), self.second(second).relu()], dim=1)
        return maps, correlate(correlation_input(maps), self.correlated(features))


class GlobalCueInjection(nn.Module):
    """Shallow features modulated by the deep ones' global maximum (SS section 4.2, adaptive instance normalisation).

    Shallow ``(B, width, h, w)`` and deep ``(B, width, h', w')`` to ``(B, width, h, w)``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = _conv_norm_relu(width, 2 * width, kernel_size=1)
        self.shallow = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width, affine=False))
        self.out = _conv_norm_relu(width, width, kernel_size=1)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        gamma, beta = self.deep(deep).amax(dim=(2, 3)).chunk(2, dim=1)
        injected: Tensor = self.out(modulate(self.shallow(shallow), gamma, beta).relu())
        return injected


def modulate(features: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """``x * (gamma + 1) + beta`` channel by channel. (B, C, h, w), (B, C), (B, C) -> (B, C, h, w)."""
    return features * (gamma + 1.0)[:, :, None, None] + beta[:, :, None, None]


class StochasticGate(nn.Module):
    """Mix deep and shallow features at random in training, at a fixed share otherwise (SS section 4.3).

    Args:
        psi: share of the shallow features.

    Raises:
        InputError: a share outside of 0 .. 1.
    """

    def __init__(self, psi: float = 0.3) -> None:
        super().__init__()
        if not 0.0 <= psi < 1.0:
            raise InputError(f"The stochastic gate's psi is a share in [0, 1), got {psi}; the paper takes 0.3.")
        self.psi = psi

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Map two (B, C, h, w) to one."""
        if not self.training:
            return (1.0 - self.psi) * deep + self.psi * shallow
        return gated(deep, shallow, F.dropout(torch.ones_like(deep), self.psi), psi=self.psi)


def gated(deep: Tensor, shallow: Tensor, dropout_mask: Tensor, *, psi: float) -> Tensor:
    """``k (deep - psi shallow) / (1 - psi) + (1 - k) shallow`` with ``k = (1 - psi) dropout_mask``.

    All (B, C, h, w); the mask holds 0 (with probability psi) or 1 / (1 - psi), so that k is 0 or 1. The mean over the
    masks is ``deep``, not the mixture of evaluation: so in the released code.
    """
    keep = (1.0 - psi) * dropout_mask
    return keep * (deep - psi * shallow) / (1.0 - psi) + (1.0 - keep) * shallow


class SsDecoder(nn.Module):
    """Decoder of SS: spatial pyramid, shallow features, global cue injection, stochastic gate, two convolutions.

    Args:
        in_channels: of the body.
        shallow_channels: of the shallow level (in the paper the output of the block at stride 4).
        n_foreground: F.
        width: of the decoder; None: 256 in proportion.
        skip_width: of the shallow features beside the deep ones; None: 48 in proportion.
        dilations: of the pyramid's 3x3 branches; 12, 24, 36 at output stride 8, 6, 12, 18 at 16.
        psi: see :class:`StochasticGate`.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        shallow_channels: int,
        n_foreground: int,
        width: int | None = None,
        skip_width: int | None = None,
        dilations: Sequence[int] = (6, 12, 18),
        psi: float = 0.3,
    ) -> None:
        super().__init__()
        width = width or proportional_width(256, body_channels=in_channels)
        skip_width = skip_width or proportional_width(48, body_channels=in_channels)
        self.branches = nn.ModuleList(
            [_conv_norm_relu(in_channels, width, kernel_size=1)]
            + [_conv_norm_relu(in_channels, width, dilation=d) for d in dilations]
        )
        self.pooled = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU())  # one pixel: nothing to normalise
        self.pyramid = nn.Sequential(
            _conv_norm_relu(width * (len(self.branches) + 1), width, kernel_size=1), nn.Dropout(0.5)
        )
        # The published injection wants shallow features as wide as the decoder; others are brought to that width.
        self.widen = nn.Identity() if shallow_channels == width else nn.Conv2d(shallow_channels, width, 1, bias=False)
        self.skip = _conv_norm_relu(shallow_channels, skip_width, kernel_size=1)
        self.merge = _conv_norm_relu(width + skip_width, width)
        self.inject = GlobalCueInjection(width)
        self.gate = StochasticGate(psi)
        self.last = nn.Sequential(
            _conv_norm_relu(width, width),
            nn.Dropout(0.5),
            _conv_norm_relu(width, width),
            nn.Dropout(0.1),
            nn.Conv2d(width, n_foreground, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, body: Tensor, shallow: Tensor) -> Tensor:
        """Return logits ``(B, F + 1, h_s, w_s)`` at the size of the shallow level, background first, constant 1.

        Args:
            body: (B, D, h, w).
            shallow: (B, shallow_channels, h_s, w_s).
        """
        pooled = self.pooled(body.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *body.shape[-2:])
        deep = self.pyramid(torch.cat([*(branch(body) for branch in self.branches), pooled], dim=1))
        skip = self.skip(shallow)
        deep = self.merge(torch.cat([_resized(deep, skip.shape[-2:]), skip], dim=1))
        mixed = self.gate(deep, self.inject(self.widen(shallow), deep))
        return with_background(self.last(mixed))


class AffinityHead(nn.Module):
    """Features whose distances are pixel affinities, from three levels (AffinityNet as in SEAM's code).

    Args:
        level_channels: of the three levels, the body last.
        level_widths: channels that they are reduced to; None: 64, 128, 256 in proportion to the body.
    """

    def __init__(
        self, level_channels: tuple[int, int, int], *, level_widths: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        body = level_channels[-1]
        published = [proportional_width(n, body_channels=body) for n in (64, 128, 256)]
        widths = list(level_widths or published)
        self.levels = nn.ModuleList(
            nn.Conv2d(channels, width, 1, bias=False) for channels, width in zip(level_channels, widths, strict=True)
        )
        self.joined = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for module in self.levels.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.xavier_uniform_(self.joined.weight, gain=4)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map three (B, level_channels[i], h_i, w_i) to ``(B, sum(level_widths), h, w)`` at the size of the last."""
        size = levels[-1].shape[-2:]
        reduced = [F.elu(conv(_resized(level, size))) for conv, level in zip(self.levels, levels, strict=True)]
        return F.elu(self.joined(torch.cat(reduced, dim=1)))


def _conv_norm_relu(in_channels: int, out_channels: int, *, kernel_size: int = 3, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=True)
