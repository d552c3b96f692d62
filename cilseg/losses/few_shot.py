"""PIFS: new classes from a few images, by imprinted prototypes.

Source: Cermelli, Mancini, Xian, Akata, Caputo, "Prototype-based Incremental Few-Shot Semantic Segmentation", BMVC 2021,
and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.distillation import kd
from cilseg.losses.pixel import cross_entropy
from cilseg.losses.precision import at_least_float32


@torch.no_grad()
def image_prototypes(features: Tensor, labels: Tensor, *, class_ids: Sequence[int]) -> Tensor:
    """Mean direction of every class in every image.

    Args:
        features: (B, D, h, w), upsampled bilinearly to the labels here.
        labels: (B, H, W) class ids; other ids and void are not used.
        class_ids: the new classes.

    Returns:
        (B, len(class_ids), D) of length 1, or 0 where the image lacks the class. Sum them over images and give the sum
        to :func:`imprinted_weights`.
    """
    rows = []
    for image, label in zip(at_least_float32(features), labels, strict=True):  # one image at a time: (D, H, W) is large
        size = (label.shape[0], label.shape[1])
        large = F.interpolate(image.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
        directions = F.normalize(large.squeeze(0), dim=0)
        sums = torch.stack([directions[:, label == class_id].sum(dim=1) for class_id in class_ids])
        rows.append(F.normalize(sums, dim=1))
    return torch.stack(rows)


def imprinted_weights(prototype_sum: Tensor) -> Tensor:
    """Return (n_new, D) weights of length 1 from the sum over images of :func:`image_prototypes`; 0 stays 0."""
    return F.normalize(prototype_sum, dim=1)


def pifs_losses(
    logits: Tensor,
    target: Tensor,
    *,
    teacher_logits: Tensor,
    kd_weight: float = 10.0,
    clip: float | None = 10.0,
    temperature: float = 1.0,
    ignore_id: int = VOID_ID,
) -> dict[str, Tensor]:
    """Cross-entropy and distillation from the imprinted model; the total is their sum.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) class ids, averaged over the pixels that are not ``ignore_id``.
        teacher_logits: (B, C, H, W) of the model as imprinted, new classes included; fewer channels distil those alone.
        kd_weight: factor of the distillation.
        clip: the distillation is dropped from a batch where, weighted, it exceeds this; None never drops it. A rule of
            the released code that the paper does not mention.
        temperature: divides the teacher's logits (not the student's, as released); the loss is multiplied by its
            square.
        ignore_id: void.

    Returns:
        Scalars "ce" and "kd", the latter weighted.
    """
    distilled = kd_weight * temperature**2 * kd(logits, teacher_logits, alpha=1.0 / temperature)
    if clip is not None:
        distilled = torch.where(distilled > clip, 0.0, distilled)
    return {"ce": cross_entropy(logits, target, ignore_id=ignore_id, reduction="valid_mean"), "kd": distilled}
