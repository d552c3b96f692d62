"""How the classifier of new classes starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cilseg.errors import InputError


@torch.no_grad()
def background_split_init(old_weight: Tensor, old_bias: Tensor, *, n_new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start new classes as shares of the background, so that the soft-max of the old classes does not change.

    Every new class gets the background's weights, and background and new classes the bias
    ``b_background - log(n_new + 1)`` (MiB: Cermelli et al., CVPR 2020, eq. 10 and 11).

    Args:
        old_weight: (n_old, D, 1, 1) or (n_old, D) weights of the old classifier, background first.
        old_bias: (n_old,).
        n_new: number of new classes.

    Returns:
        New weights (n_new, D, ...), new biases (n_new,), and the old biases after (n_old,); copies all, the
        arguments stay as they are.

    Raises:
        InputError: fewer than one new class, or weights and biases of different lengths.
    """
    if n_new < 1:
        raise InputError(f"A step brings at least one new class, got {n_new}.")
    if old_bias.ndim != 1 or len(old_weight) != len(old_bias) or not len(old_bias):
        raise InputError(
            f"Weights {tuple(old_weight.shape)} and biases {tuple(old_bias.shape)} do not belong to one classifier; "
            "give the layer that holds the background class."
        )
    old_bias_after = old_bias.detach().clone()
    old_bias_after[0] -= math.log(n_new + 1)
    new_weight = old_weight[:1].detach().repeat(n_new, *[1] * (old_weight.ndim - 1))
    return new_weight, old_bias_after[:1].repeat(n_new), old_bias_after
