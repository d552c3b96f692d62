"""Explicit pseudo-pixel supervision: class maps that add up to a saliency map.

Source: Lee, Lee, Lee, Shim, "Railroad is not a Train: Saliency as Pseudo-pixel Supervision for Weakly Supervised
Semantic Segmentation" (EPS), CVPR 2021, and its released code. Background is the LAST channel here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.cam import cam_loss
from cilseg.losses.precision import at_least_float32


class SaliencyMaps(NamedTuple):
    """What the class maps say about saliency."""

    foreground: Tensor  #: (B, h, w) sum of the tagged classes that lie on the salient region
    background: Tensor  #: (B, h, w) one minus the sum of background and the other tagged classes
    predicted: Tensor  #: (B, h, w) mixture of both, compared with the saliency map


def overlap_ratio(probabilities: Tensor, saliency: Tensor) -> Tensor:
    """Share of each class's pixels (probability rounded to 0 or 1) that are salient (EPS section 3.2).

    Args:
        probabilities: (B, F, h, w).
        saliency: (B, h, w) in 0 .. 1.

    Returns:
        (B, F); no gradient flows.
    """
    claimed = probabilities.detach().round()
    salient = saliency.round().unsqueeze(1)
    return (claimed * salient).sum(dim=(2, 3)) / (claimed + 1e-4).sum(dim=(2, 3))


def saliency_maps(maps: Tensor, saliency: Tensor, tags: Tensor, *, tau: float = 0.4, lam: float = 0.5) -> SaliencyMaps:
    """Predict the saliency map from the class maps (EPS eq. 1 to 3).

    Args:
        maps: (B, F + 1, h, w) logits, background last.
        saliency: (B, h, w) in 0 .. 1.
        tags: (B, F): 1 present; every other value keeps a class out of both sums.
        tau: a tagged class with a larger :func:`overlap_ratio` belongs to the foreground. 0.4 in the scripts, 0.5 the
            default of the code.
        lam: share of the foreground in the mixture; 0.5 for VOC, 0.9 for COCO.
    """
    probabilities = at_least_float32(maps).softmax(dim=1)
    classes = probabilities[:, :-1]
    present = tags > 0
    salient = overlap_ratio(classes, saliency.to(classes.dtype)) > tau
    chosen = (present & salient)[:, :, None, None].to(classes.dtype)
    others = (present & ~salient)[:, :, None, None].to(classes.dtype)
    foreground = (classes * chosen).sum(dim=1)
    background = 1.0 - (classes * others).sum(dim=1) - probabilities[:, -1]
    return SaliencyMaps(foreground, background, lam * foreground + (1.0 - lam) * background)


def saliency_loss(maps: Tensor, saliency: Tensor, tags: Tensor, *, tau: float = 0.4, lam: float = 0.5) -> Tensor:
    """Mean squared error between the predicted saliency and the given one (EPS eq. 4).

    Args:
        maps: (B, F + 1, h, w) logits, background last.
        saliency: (B, H, W) in 0 .. 1, brought to the size of the maps by nearest neighbour.
        tags: (B, F): 1 present, 0 absent, -1 or NaN unknown.
        tau: see :func:`saliency_maps`.
        lam: the same.

    Returns:
        Scalar: mean over images and pixels.
    """
    small = F.interpolate(at_least_float32(saliency).unsqueeze(1), size=maps.shape[-2:]).squeeze(1)
    predicted = saliency_maps(maps, small, tags, tau=tau, lam=lam).predicted
    return F.mse_loss(predicted, small.to(predicted.dtype))


def eps_losses(
    maps: Tensor, saliency: Tensor, *, tags: Tensor, tau: float = 0.4, lam: float = 0.5
) -> dict[str, Tensor]:
    """All losses of EPS; the total is their sum.

    Arguments as in :func:`saliency_loss`.

    Returns:
        Scalars under "cls" (image tags against the spatial means of the foreground maps) and "sal" (saliency).
    """
    return {
        "cls": cam_loss(maps[:, :-1], tags),
        "sal": saliency_loss(maps, saliency, tags, tau=tau, lam=lam),
    }
