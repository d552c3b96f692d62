"""Pixel-adaptive mask refinement: masks are diffused along the image's own edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.precision import at_least_float32

_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@torch.no_grad()
def pamr(image: Tensor, mask: Tensor, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12)) -> Tensor:
    """Refine ``mask`` so that it follows the edges of ``image``.

    Every pixel becomes a weighted mean of its 8 neighbours at each dilation, ``iterations`` times. The weights are
    a soft-max over ``-|I_i - I_n| / (0.1 * local standard deviation)``, mean over the colours (Araslanov and Roth,
    CVPR 2020, section 4.3). Only differences of colours relative to their local spread enter, so an affine scaling
    of any channel changes nothing. No gradient flows.

    Args:
        image: (B, 3, h, w) in any scaling.
        mask: (B, C, h', w'), resized bilinearly (corners aligned) to the image when the sizes differ.
        iterations: number of diffusion passes.
        dilations: distances of the neighbours, in pixels. Beyond the border the border pixel is repeated.

    Returns:
        (B, C, h, w) in float32 at least; sums over channels that were one stay one.
    """
    image, mask = at_least_float32(image), at_least_float32(mask)
    size = image.shape[-2:]
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=True)
    affinity = _affinity(image, dilations).to(mask.dtype)
    for _ in range(iterations):
        refined = torch.zeros_like(mask)
        for index, neighbour in enumerate(_shifted(mask, dilations)):
            refined.addcmul_(neighbour, affinity[:, index : index + 1])
        mask = refined
    return mask


def _shifted(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield (B, c, h, w) views of ``values`` moved to each neighbour, dilation by dilation, borders repeated."""
    height, width = values.shape[-2:]
    reach = max(dilations)
    padded = F.pad(values, (reach, reach, reach, reach), mode="replicate")
    for dilation in dilations:
        for dy, dx in _NEIGHBOURS:
            top, left = reach + dy * dilation, reach + dx * dilation
            yield padded[:, :, top : top + height, left : left + width]


def _affinity(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Return the (B, 8 * len(dilations), h, w) weights of the neighbours; they sum to one at every pixel."""
    neighbours = torch.stack(list(_shifted(image, dilations)))
    # The centre counts once per dilation in the local spread.
    spread = torch.cat([neighbours, image.expand(len(dilations), *image.shape)]).std(dim=0)
    similarity = neighbours.sub_(image).abs_().neg_().div_(1e-8 + 0.1 * spread)
    return similarity.mean(dim=2).transpose(0, 1).softmax(dim=1)
