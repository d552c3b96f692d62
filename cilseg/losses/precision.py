"""Losses are computed in float32 at least, whatever the precision of the network."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or untouched when they are float32 or float64 already."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float()
