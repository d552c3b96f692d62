"""Batch renormalisation with fixed statistics: the forward of evaluation, the gradient of batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def batch_renorm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise with the batch's statistics, corrected to the running ones by factors that carry no gradient.

    ``r = std / running std`` and ``d = (mean - running mean) / running std`` (Ioffe, 2017; PIFS with momentum 0), both
    from the biased variance: the result equals that of evaluation exactly. The released code of PIFS takes the unbiased
    variance and the absolute weight, so that training and evaluation differ there.

    Args:
        x: (B, C, h, w).
        running_mean: (C,).
        running_var: (C,).
        weight: (C,).
        bias: (C,).
        eps: added to variances.
    """
    axes = (0, 2, 3)
    mean = x.mean(dim=axes, keepdim=True)
    var = x.var(dim=axes, unbiased=False, keepdim=True)
    deviation = (var + eps).sqrt()
    running = (running_var + eps).sqrt().view(1, -1, 1, 1)
    with torch.no_grad():
        r = deviation / running
        d = (mean - running_mean.view(1, -1, 1, 1)) / running
    normalised = (x - mean) / deviation * r + d
    return normalised * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch norm that trains by :func:`batch_renorm`; its running statistics never move."""

    def forward(self, input: Tensor) -> Tensor:  # the name that torch calls it by
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return super().forward(input)
        x = input.float()
        return batch_renorm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps).to(
            input.dtype
        )


@contextmanager
def renormalised(model: nn.Module) -> Iterator[None]:
    """Let the batch norms of ``model`` train as :class:`BatchRenorm2d` inside the context."""
    changed = [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    for module in changed:
        module.__class__ = BatchRenorm2d
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.BatchNorm2d
