"""From the class maps of several passes over an image to one hard label per pixel, as each tag baseline does it.

The classes of a map are counted here: 0 is background, c the c-th foreground map. What ids they have in the class set
is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.errors import InputError
from cilseg.losses.precision import at_least_float32
from cilseg.losses.pseudo_labels import mask_by_tags

Window = tuple[int, int, int, int]

SCALES = (0.5, 1.0, 1.5, 2.0)  #: of the image, each seen as it is and mirrored, in all four papers


@torch.no_grad()
def merge_passes(
    passes: Sequence[Tensor],
    *,
    size_hw: tuple[int, int],
    mirrored: Sequence[bool],
    windows: Sequence[Window] | None = None,
) -> Tensor:
    """Mean of the maps of several passes at one size.

    Every published recipe sums or averages here; what follows is the same for both.

    Args:
        passes: one (B, C, h_i, w_i) per pass, resized bilinearly (corners not aligned).
        size_hw: height and width of the result, pixels.
        mirrored: which passes saw the image mirrored left to right.
        windows: (top, left, height, width) in cells of each pass's own map: what is not padding, cut out before the
            resize and before a mirrored map is mirrored back.

    Returns:
        (B, C, *size_hw).

    Raises:
        InputError: no pass, or lists of different lengths.
    """
    if not passes or len(mirrored) != len(passes) or (windows is not None and len(windows) != len(passes)):
        raise InputError(
            f"Give one entry of mirrored and of windows per pass, and at least one pass; got {len(passes)} passes, "
            f"{len(mirrored)} of mirrored and {'no' if windows is None else len(windows)} windows."
        )
    total: Tensor | None = None
    for index, maps in enumerate(passes):
        maps = at_least_float32(maps)
        if windows is not None:
            top, left, height, width = windows[index]
            maps = maps[..., top : top + height, left : left + width]
        maps = F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)
        if mirrored[index]:
            maps = maps.flip(-1)
        total = maps if total is None else total + maps
    assert total is not None
    return total / len(passes)


def over_maximum(maps: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Divide every map by its maximum: ``x / (max + eps)`` (CAM and EPS). (B, F, h, w) -> (B, F, h, w)."""
    maps = at_least_float32(maps)
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + eps)


def over_range(maps: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Bring the positive part of every map to its own range: ``(r - min - eps) / (max - min + eps)`` (SEAM).

    Values within eps of the minimum are set to zero first. (B, F, h, w) -> (B, F, h, w).
    """
    positive = at_least_float32(maps).relu()
    highest = positive.amax(dim=(2, 3), keepdim=True)
    lowest = positive.amin(dim=(2, 3), keepdim=True)
    positive = torch.where(positive < lowest + eps, 0.0, positive)
    return (positive - lowest - eps) / (highest - lowest + eps)


def background_of(maps: Tensor, *, power: float) -> Tensor:
    """Score of the background where the classes are weak: ``(1 - max_c x_c)^power``.

    SEAM takes powers 4 and 24 to find what is sure, and 6 for the random walk.

    Args:
        maps: (B, F, h, w) in 0 .. 1.
        power: larger leaves less background.

    Returns:
        (B, 1, h, w).
    """
    return (1.0 - maps.amax(dim=1, keepdim=True)) ** power


def constant_background_labels(maps: Tensor, *, background: float) -> Tensor:
    """Label every pixel with its strongest class, background where none exceeds ``background``.

    Args:
        maps: (B, F, h, w), brought to 0 .. 1.
        background: the score that a class must exceed.

    Returns:
        (B, h, w) int64; 0 background, c the c-th map.
    """
    return torch.cat([torch.full_like(maps[:, :1], background), maps], dim=1).argmax(dim=1)


@torch.no_grad()
def cam_labels(maps: Tensor, tags: Tensor, *, background: float = 0.20) -> Tensor:
    """Labels of CAM, and of EPS with soft-maxed maps: over the maximum, tagged classes, constant background.

    Args:
        maps: (B, F, H, W) merged maps, at least 0: ReLU of the class maps (CAM), foreground of the soft-max (EPS).
        tags: (B, F): 1 present; every other value hides a class.
        background: constant score of the background.

    Returns:
        (B, H, W) int64; 0 background, c the c-th map.
    """
    return constant_background_labels(over_maximum(_tagged(maps, tags)), background=background)


@torch.no_grad()
def seam_labels(maps: Tensor, tags: Tensor, *, background: float = 0.26) -> Tensor:
    """Labels of SEAM without its random walk: over the range, tagged classes, constant background.

    Args:
        maps: (B, F, H, W) merged maps after pixel correlation, background left out.
        tags: (B, F): 1 present; every other value hides a class.
        background: constant score of the background.

    Returns:
        (B, H, W) int64; 0 background, c the c-th map.
    """
    return constant_background_labels(over_range(_tagged(maps, tags)), background=background)


@torch.no_grad()
def single_stage_labels(probabilities: Tensor, tags: Tensor, *, background_power: float = 3.0) -> Tensor:
    """Labels of SS: the background raised to a power (which lowers it), tagged classes, the strongest.

    Args:
        probabilities: (B, F + 1, H, W) merged soft-max, background first.
        tags: (B, F): 1 present; every other value hides a class.
        background_power: 3 in the released code.

    Returns:
        (B, H, W) int64; 0 background, c channel c.
    """
    return with_background_power(mask_by_tags(probabilities, tags), power=background_power).argmax(dim=1)


def with_background_power(probabilities: Tensor, *, power: float = 3.0) -> Tensor:
    """Raise channel 0 to a power. (B, C, h, w) -> (B, C, h, w)."""
    return torch.cat([probabilities[:, :1] ** power, probabilities[:, 1:]], dim=1)


@torch.no_grad()
def sure_labels(maps: Tensor, *, low_power: float = 4.0, high_power: float = 24.0) -> Tensor:
    """Labels to learn affinities from: only what a weak and a strong background agree on.

    A class is sure where it beats the background of ``low_power`` (a strong one), background where it wins even
    with ``high_power``; between them a pixel is void. The published recipe runs a dense CRF on both first.

    Args:
        maps: (B, F, h, w) in 0 .. 1, untagged classes zero (:func:`over_range`, :func:`over_maximum`).
        low_power: see :func:`background_of`.
        high_power: the same.

    Returns:
        (B, h, w) int64; 0 background, c the c-th map, 255 void.
    """
    maps = maps.clamp(min=0.0)
    strict = torch.cat([background_of(maps, power=low_power), maps], dim=1).argmax(dim=1)
    lenient = torch.cat([background_of(maps, power=high_power), maps], dim=1).argmax(dim=1)
    labels = torch.where(strict == 0, VOID_ID, strict)
    return torch.where(lenient == 0, 0, labels)


def _tagged(maps: Tensor, tags: Tensor) -> Tensor:
    return at_least_float32(maps) * (tags > 0)[:, :, None, None].to(maps.dtype)


def under_prior(shares: Tensor, prior: Tensor, *, weight: float) -> Tensor:
    """Multiply shares with ``1 - weight + weight * prior``: softly, so that a wrong prior lowers but does not forbid.

    Args:
        shares: (1, K, h, w), at least 0.
        prior: (1, K, H, W), or (1, 1, H, W) for all classes, in 0 .. 1; brought to the size of the shares by the mean.
        weight: 0 leaves the shares as they are, 1 forbids a class where its prior is 0.

    Returns:
        (1, K, h, w).
    """
    small = F.interpolate(prior.to(shares.dtype), size=shares.shape[-2:], mode="area")
    return shares * (1.0 - weight + weight * small)
