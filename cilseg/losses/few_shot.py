"""Few-shot steps: imprinted classifiers and the loss that tunes them.

Source: Cermelli, Mancini, Xian, Akata, Caputo, "Prototype-based Incremental Few-Shot Semantic Segmentation" (PIFS),
BMVC 2021, and its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32


@torch.no_grad()
def imprint(samples: Iterable[tuple[Tensor, Tensor]], class_ids: Sequence[int]) -> Tensor:
    """Classifier weights of new classes: normalised means of the normalised features of their pixels.

    Args:
        samples: per image the features (1, D, h, w), brought to the size of the mask (bilinear), and the mask (H, W).
        class_ids: of the new classes.

    Returns:
        (len(class_ids), D); of length 1, or zero for a class that no image shows.
    """
    total: Tensor | None = None
    for features, mask in samples:
        features = at_least_float32(features)
        full = F.interpolate(features, size=mask.shape[-2:], mode="bilinear", align_corners=False)
        flat = F.normalize(full[0].flatten(1), dim=0)
        own = torch.stack([F.normalize(flat[:, (mask == c).flatten()].sum(dim=1), dim=0) for c in class_ids])
        total = own if total is None else total + own
    assert total is not None
    return F.normalize(total, dim=1)


def few_shot_losses(
    logits: Tensor, target: Tensor, teacher_logits: Tensor, *, kd_weight: float = 10.0, alpha: float = 1.0
) -> dict[str, Tensor]:
    """Cross-entropy and distillation from the imprinted copy of the model.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) channel ids, 255 left out.
        teacher_logits: (B, K, h, w), all C channels in PIFS; the student's soft-max is over the first K.
        kd_weight: factor of the distillation. Above a weighted value of 10 the released code leaves it out.
        alpha: temperature of both sides.

    Returns:
        Scalars under "ce" (mean over the pixels that count) and "kd" (weighted).
    """
    logits = at_least_float32(logits)
    counts = (target != VOID_ID).sum().clamp(min=1)
    ce = F.cross_entropy(logits, target.long(), ignore_index=VOID_ID, reduction="sum") / counts
    wanted = (at_least_float32(teacher_logits.detach()).to(logits.dtype) / alpha).softmax(dim=1)
    ours = logits[:, : teacher_logits.shape[1]].log_softmax(dim=1)
    kd = -kd_weight * alpha**2 * (wanted * ours).mean()
    return {"ce": ce, "kd": torch.where(kd > 10.0, torch.zeros_like(kd), kd)}
