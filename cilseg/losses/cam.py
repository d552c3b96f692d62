"""The classifier behind class activation maps (CAM; Zhou et al., CVPR 2016, as trained in EPS, CVPR 2021)."""

from __future__ import annotations

from torch import Tensor

from cilseg.losses.aggregate import tag_loss


def cam_loss(maps: Tensor, tags: Tensor) -> Tensor:
    """Multi-label soft-margin loss of the maps' spatial means.

    The score of a class is the mean of its map. A convolution without bias commutes with the mean, so this equals
    classifying the globally averaged features.

    Args:
        maps: (B, F, h, w) before any activation; the last F channels when there are more.
        tags: (B, F): 1 present, 0 absent, -1 or NaN unknown. Unknown entries are left out.

    Returns:
        Scalar: mean over the known entries, 0 when there is none.
    """
    return tag_loss(maps, tags, aggregation="gap")
