"""Pixel affinities within a radius: their labels, their loss, and the random walk they drive.

Source: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (AffinityNet), CVPR 2018,
in the form that SEAM's released code trains.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.precision import at_least_float32


class AffinityTargets(NamedTuple):
    """Which pairs of cells count as what, each (B, n_offsets, n_cells) of zeros and ones."""

    background: Tensor  #: both cells are background
    foreground: Tensor  #: both cells show the same class
    different: Tensor  #: the cells show different things


@lru_cache(maxsize=16)
def neighbour_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """One half of the disc ``dy^2 + dx^2 < radius^2`` around a cell, as (dy, dx): below it, or right of it in its row.

    The other half is the same pairs seen from the other end.
    """
    reach = range(1 - radius, radius)
    return tuple(
        (dy, dx) for dy in range(radius) for dx in reach if dy * dy + dx * dx < radius * radius and (dy > 0 or dx > 0)
    )


def pairs_of_cells(values: Tensor, *, radius: int = 5) -> tuple[Tensor, Tensor]:
    """Cut every cell whose whole half disc lies inside the map, and its neighbours.

    Args:
        values: (..., h, w).
        radius: in cells.

    Returns:
        The cells (..., 1, n_cells) and their neighbours (..., n_offsets, n_cells), in the order of
        :func:`neighbour_offsets`; ``n_cells = (h - radius + 1) * (w - 2 * radius + 2)``.

    Raises:
        InputError: the map is too small for the radius.
    """
    height, width = values.shape[-2:]
    reach = radius - 1
    rows, columns = height - reach, width - 2 * reach
    if rows < 1 or columns < 1:
        raise InputError(
            f"A map of {height} x {width} cells holds no pairs within radius {radius}: it needs at least {radius} x "
            f"{2 * radius - 1}. Use larger images, a smaller output stride or a smaller radius."
        )
    here = values[..., :rows, reach : reach + columns].flatten(-2).unsqueeze(-2)
    there = [
        values[..., dy : dy + rows, reach + dx : reach + dx + columns].flatten(-2)
        for dy, dx in neighbour_offsets(radius)
    ]
    return here, torch.stack(there, dim=-2)


def affinity_targets(labels: Tensor, *, radius: int = 5) -> AffinityTargets:
    """Label the pairs of cells within a radius; a void cell is in none.

    Args:
        labels: (B, h, w) integer class ids, 0 background, 255 void (undecided), at the stride of the features.
        radius: in cells.
    """
    here, there = pairs_of_cells(labels, radius=radius)
    valid = (here != VOID_ID) & (there != VOID_ID)
    equal = (here == there) & valid
    return AffinityTargets(
        (equal & (here == 0)).float(), (equal & (here != 0)).float(), (valid & (here != there)).float()
    )


def pair_affinity(features: Tensor, *, radius: int = 5) -> Tensor:
    """``exp(-mean |f_i - f_j|)`` of the pairs of cells within a radius. (B, D, h, w) -> (B, n_offsets, n_cells)."""
    here, there = pairs_of_cells(at_least_float32(features), radius=radius)
    return torch.exp(-(here - there).abs().mean(dim=1))


def affinity_losses(affinity: Tensor, targets: AffinityTargets, *, eps: float = 1e-5) -> dict[str, Tensor]:
    """Cross-entropy of the pairs, each kind averaged on its own.

    Args:
        affinity: (B, n_offsets, n_cells) in 0 .. 1.
        targets: of the same pairs.
        eps: keeps logarithms and quotients finite.

    Returns:
        Scalars under "background", "foreground" and "different", unweighted (:func:`affinity_loss`).
    """
    affinity = at_least_float32(affinity)

    def mean_of(log: Tensor, chosen: Tensor) -> Tensor:
        return (-chosen * log).sum() / (chosen.sum() + eps)

    alike = torch.log(affinity + eps)
    return {
        "background": mean_of(alike, targets.background),
        "foreground": mean_of(alike, targets.foreground),
        "different": mean_of(torch.log(1.0 + eps - affinity), targets.different),
    }


def affinity_loss(affinity: Tensor, targets: AffinityTargets, *, eps: float = 1e-5) -> Tensor:
    """``background / 4 + foreground / 4 + different / 2`` of :func:`affinity_losses`; a scalar."""
    parts = affinity_losses(affinity, targets, eps=eps)
    return parts["background"] / 4 + parts["foreground"] / 4 + parts["different"] / 2


@torch.no_grad()
def affinity_matrix(features: Tensor, *, radius: int = 5) -> Tensor:
    """Symmetric affinities of all pairs within a radius, 1 on the diagonal and 0 beyond.

    Unlike in training (:func:`pairs_of_cells`) cells near the border keep the neighbours that they have.

    Args:
        features: (B, D, h, w).
        radius: in cells.

    Returns:
        (B, h * w, h * w).
    """
    features = at_least_float32(features)
    batch, _, height, width = features.shape
    cells = torch.arange(height * width, device=features.device).view(height, width)
    matrix = torch.eye(height * width, device=features.device, dtype=features.dtype).repeat(batch, 1, 1)
    flat = features.flatten(2)
    for dy, dx in neighbour_offsets(radius):
        left, right = max(0, -dx), width - max(0, dx)
        if dy >= height or left >= right:
            continue
        here = cells[: height - dy, left:right].flatten()
        there = cells[dy:, left + dx : right + dx].flatten()
        value = torch.exp(-(flat[:, :, here] - flat[:, :, there]).abs().mean(dim=1))
        matrix[:, here, there] = value
        matrix[:, there, here] = value
    return matrix


@torch.no_grad()
def random_walk(maps: Tensor, matrix: Tensor, *, power: float = 8.0, doublings: int = 6) -> Tensor:
    """Spread maps along affinities: ``2^doublings`` steps of the walk ``A^power`` with columns divided by their sums.

    Args:
        maps: (B, C, h, w).
        matrix: (B, h * w, h * w) affinities in 0 .. 1 (:func:`affinity_matrix`), powered element by element.
        power: the paper's beta; larger walks less far.
        doublings: how often the transition matrix is squared.

    Returns:
        (B, C, h, w).
    """
    maps = at_least_float32(maps)
    with torch.autocast(maps.device.type, enabled=False):  # squaring would heap up rounding errors
        transition = at_least_float32(matrix) ** power
        transition = transition / transition.sum(dim=1, keepdim=True)
        for _ in range(doublings):
            transition = transition @ transition
        return (maps.flatten(2) @ transition.to(maps.dtype)).view(maps.shape)
