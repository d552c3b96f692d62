"""Batch renormalisation: the forward pass of evaluation, the gradients of batch normalisation.

Source: PIFS (BMVC 2021, section 3.3), after Ioffe, "Batch Renormalization", 2017. The released code takes the unbiased
variance for the correction and scales by ``|weight|`` while it shifts by the signed weight, so that training and
evaluation differ; here both give the same output.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cilseg.errors import InputError


class BatchRenorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose running statistics stand still and rule the training output too.

    Maps ``(B, C, h, w)`` to the same. One value per channel (a pooled branch with one image) works, and has no gradient
    towards the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.running_mean is None or self.running_var is None:
            raise InputError("Batch renormalisation needs running statistics; build it with track_running_stats=True.")
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0, keepdim=True)
        spread = (variance + self.eps).sqrt()
        running_mean = self.running_mean.view(1, -1, 1, 1)
        running_spread = (self.running_var.view(1, -1, 1, 1) + self.eps).sqrt()
        r = (spread / running_spread).detach()
        d = ((mean - running_mean) / running_spread).detach()
        out = (values - mean) / spread * r + d
        if self.affine:
            out = out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(input.dtype)

    @classmethod
    def sharing(cls, norm: nn.BatchNorm2d) -> BatchRenorm2d:
        """Return a layer with the very parameters and running statistics of ``norm``."""
        made = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
        made.weight, made.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            made.register_buffer(name, cast("Tensor | None", getattr(norm, name)))
        return made.train(norm.training)


def renormalise(module: nn.Module) -> int:
    """Replace every BatchNorm2d inside ``module`` by a :class:`BatchRenorm2d` that shares its parameters.

    Returns:
        How many were replaced. Names in the state dict stay the same.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, BatchRenorm2d):
                setattr(parent, name, BatchRenorm2d.sharing(child))
                replaced += 1
    return replaced
