"""A saliency map that needs no training: what does not look like the border of the image.

Stands in for the trained saliency detector of EPS, which learns from masks of other data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.errors import InputError
from cilseg.losses.pamr import pamr
from cilseg.losses.precision import at_least_float32

_FINER = 4  # the refinement needs pixels much smaller than a cell; at the cells' own size it blurs


@torch.no_grad()
def boundary_saliency(features: Tensor, image: Tensor, *, refinement_iterations: int = 30) -> Tensor:
    """Dissimilarity of every cell to the border of its image (boundary prior), refined along the image's edges.

    The features are centred over the image's cells and brought to unit length; a cell's score is one minus the cosine
    to the border cells' mean. The scores are refined by :func:`cilseg.losses.pamr.pamr` on a finer grid, brought to
    0 .. 1, and stretched so that the image's own Otsu threshold lies at 0.5: rounding gives the salient region.
    An image whose features are all alike is salient nowhere. Each image is treated on its own.

    Args:
        features: (B, D, h, w) of the backbone's body.
        image: (B, 3, H, W), any affine scaling; its aspect is that of the features.
        refinement_iterations: passes of the refinement; 0 leaves the scores as they are.

    Returns:
        (B, h, w) in 0 .. 1.

    Raises:
        InputError: fewer than 3 x 3 cells: all of them are border.
    """
    features = at_least_float32(features)
    height, width = features.shape[-2:]
    if min(height, width) < 3:
        raise InputError(
            f"A saliency map needs at least 3 x 3 cells, got {height} x {width}. Use larger images or a smaller "
            "output stride."
        )
    scores = _unit_range(_border_dissimilarity(features))
    if refinement_iterations:
        scores = _unit_range(_refined(scores, image, iterations=refinement_iterations))
    return torch.stack([_otsu_at_half(one) for one in scores])


def _border_dissimilarity(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h, w), 0 .. 2."""
    border = torch.ones(features.shape[-2:], dtype=torch.bool, device=features.device)
    border[1:-1, 1:-1] = False
    centred = features - features.mean(dim=(2, 3), keepdim=True)
    directions = F.normalize(centred, dim=1, eps=1e-5)
    typical = F.normalize(directions[:, :, border].mean(dim=2), dim=1, eps=1e-5)
    return 1.0 - (directions * typical[:, :, None, None]).sum(dim=1)


def _refined(scores: Tensor, image: Tensor, *, iterations: int) -> Tensor:
    finer = [_FINER * n for n in scores.shape[-2:]]
    start = F.interpolate(scores.unsqueeze(1), size=finer, mode="bilinear", align_corners=False)
    small = F.interpolate(at_least_float32(image), size=finer, mode="bilinear", align_corners=False, antialias=True)
    return F.avg_pool2d(pamr(small, start, iterations=iterations), _FINER).squeeze(1)


def _unit_range(scores: Tensor) -> Tensor:
    lowest = scores.amin(dim=(1, 2), keepdim=True)
    span = scores.amax(dim=(1, 2), keepdim=True) - lowest
    # A span of rounding errors is none.
    return torch.where(span > 1e-4, (scores - lowest) / span.clamp(min=1e-4), 0.0)


def _otsu_at_half(scores: Tensor) -> Tensor:
    """Stretch one (h, w) map piecewise so that the threshold of the largest variance between classes is 0.5."""
    values = scores.flatten().sort().values
    below = torch.arange(1, len(values), device=values.device, dtype=values.dtype)
    above = len(values) - below
    sums = values.cumsum(dim=0)
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    cut = int((below * above * gap.square()).argmax())
    threshold = ((values[cut] + values[cut + 1]) / 2).clamp(1e-5, 1 - 1e-5)
    lower = 0.5 * scores / threshold
    return torch.where(scores < threshold, lower, 0.5 + 0.5 * (scores - threshold) / (1.0 - threshold))
