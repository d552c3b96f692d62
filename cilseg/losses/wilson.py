"""The losses of WILSON's incremental step: new classes from image tags, old ones from the old model.

Source: Cermelli, Fontanel, Tavera, Ciccone, Caputo, "Incremental Learning in Semantic Segmentation from Image
Labels", CVPR 2022, and its released code. Where the two differ the default is the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.losses.aggregate import tag_loss
from cilseg.losses.pamr import pamr
from cilseg.losses.precision import at_least_float32
from cilseg.losses.pseudo_labels import mask_by_tags, partial_mask, soft_labels


class PseudoLabels(NamedTuple):
    """What a step learns from after the warm-up; nothing here carries a gradient."""

    partial: Tensor  #: (B, C, h, w) zeros and ones for the localizer; a pixel of zeros is undecided
    soft: Tensor  #: (B, C, h, w) soft labels of the localizer
    target: Tensor  #: (B, C, h, w) target of the segmentation head
    image_weight: Tensor  #: (B,) 1 for images that count in the segmentation loss, else 0


def localizer_distillation(
    localizer_logits: Tensor, old_logits: Tensor, *, scores: Literal["sigmoid", "softmax"] = "sigmoid"
) -> Tensor:
    """Keep the localizer's old channels near the old model's scores (L_LOC, eq. 5).

    Args:
        localizer_logits: (B, C, h, w).
        old_logits: (B, n_old, h, w) of the old model, background included; no gradient flows into them.
        scores: "sigmoid", one binary cross-entropy per channel; "softmax", one cross-entropy per pixel over the old
            channels, the foil of the paper's table 4.

    Returns:
        Scalar: mean over images and pixels, and with "sigmoid" over old channels.
    """
    ours = at_least_float32(localizer_logits[:, : old_logits.shape[1]])
    old = at_least_float32(old_logits.detach()).to(ours.dtype)
    if scores == "softmax":
        return F.cross_entropy(ours, old.softmax(dim=1))
    wanted = old.sigmoid()
    return F.binary_cross_entropy_with_logits(ours, wanted)


def encoder_distillation(
    body: Tensor, old_body: Tensor, *, reduction: Literal["mean", "channel_sum"] = "mean"
) -> Tensor:
    """Keep the backbone's features near the old ones (L_ENC).

    Args:
        body: (B, D, h, w).
        old_body: the same of the old model; no gradient flows into it.
        reduction: "mean" over every element (released code), or "channel_sum": sum over the channels, mean over
            images and pixels (the paper's equation).

    Returns:
        Scalar.
    """
    ours = at_least_float32(body)
    mean = F.mse_loss(ours, at_least_float32(old_body.detach()).to(ours.dtype))
    return mean * body.shape[1] if reduction == "channel_sum" else mean


def balanced_mask_ce(logits: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
    """Cross-entropy against a partial mask, classes of one image weighted by how few pixels they have (L_SSS).

    Class c of an image weighs ``(T - M_c) / (1 + T)``, M_c its pixels and T all decided pixels. Undecided pixels
    add nothing but count in the mean. An image counts only if it shows as many classes as it has tags, plus
    background; classes with an unknown tag are left out of that count.

    Args:
        logits: (B, C, h', w'), resized bilinearly (corners aligned) to the mask when the sizes differ.
        mask: (B, C, h, w) of zeros and ones (:func:`cilseg.losses.pseudo_labels.partial_mask`).
        tags: (B, C - 1): 1 present, 0 absent, -1 or NaN unknown.

    Returns:
        Scalar: mean over pixels, then images.
    """
    logits = at_least_float32(logits)
    mask = mask.to(logits.dtype)
    if logits.shape[-2:] != mask.shape[-2:]:
        logits = F.interpolate(logits, size=mask.shape[-2:], mode="bilinear", align_corners=True)
    pixels = mask.sum(dim=(2, 3))  # (B, C)
    decided = pixels.sum(dim=1, keepdim=True)
    class_weight = (decided - pixels) / (1.0 + decided)
    labels = mask.argmax(dim=1)  # of an undecided pixel: 0, with weight 0
    pixel_weight = class_weight.gather(1, labels.flatten(1)).view_as(labels) * mask.amax(dim=1)
    per_image = (pixel_weight * F.cross_entropy(logits, labels, reduction="none")).mean(dim=(1, 2))
    known = F.pad(tags >= 0, (1, 0), value=True)
    complete = ((pixels > 0) & known).sum(dim=1) == (tags > 0).sum(dim=1) + 1
    return (per_image * complete).mean()


def segmentation_target(
    old_probabilities: Tensor,
    soft: Tensor,
    *,
    n_old: int,
    background_mix: float | None = None,
    suppress_claimed: bool = False,
) -> Tensor:
    """Join what the old model says of old classes and the soft labels of new ones (eq. 7 and 8).

    Background is where both agree that nothing is: the smaller of the two scores, or, when given,
    ``(1 - background_mix) * old + background_mix * soft``.

    Args:
        old_probabilities: (B, n_old, h, w) sigmoid scores of the old model.
        soft: (B, C, h, w) soft labels of the localizer.
        n_old: number of old channels, background included.
        background_mix: None for the min rule.
        suppress_claimed: lower old foreground classes to at most one minus the largest new soft label of the pixel,
            so that a pixel claimed by a new class is not taught as an old one too. Not in the paper.

    Returns:
        (B, C, h, w).
    """
    old_background, new_background = old_probabilities[:, :1], soft[:, :1]
    if background_mix is None:
        background = torch.minimum(old_background, new_background)
    else:
        background = (1.0 - background_mix) * old_background + background_mix * new_background
    old_foreground, new = old_probabilities[:, 1:n_old], soft[:, n_old:]
    if suppress_claimed and new.shape[1]:
        old_foreground = torch.minimum(old_foreground, 1.0 - new.amax(dim=1, keepdim=True))
    return torch.cat([background, old_foreground, new], dim=1)


def image_weight(soft: Tensor, tags: Tensor, *, n_old: int) -> Tensor:
    """1 for images whose soft labels show exactly the tagged new classes, else 0 (released code only).

    It rejects hard labels only: below ``alpha = 1`` a tagged class always keeps some mass.

    Args:
        soft: (B, C, h, w).
        tags: (B, C - 1); new classes with an unknown tag (-1 or NaN) are not judged.
        n_old: number of old channels, background included.

    Returns:
        (B,) of zeros and ones, dtype of ``soft``.
    """
    shown = soft[:, n_old:].sum(dim=(2, 3)) > 0
    new_tags = tags[:, n_old - 1 :]
    agrees = (shown == (new_tags > 0)) | ~(new_tags >= 0)
    return agrees.all(dim=1).to(soft.dtype)


def segmentation_loss(logits: Tensor, target: Tensor, image_weight: Tensor) -> Tensor:
    """Binary cross-entropy against soft targets: sum over classes, mean over pixels, mean over weighted images.

    Args:
        logits: (B, C, h, w) of the segmentation head.
        target: (B, C, h, w) in 0 .. 1.
        image_weight: (B,).

    Returns:
        Scalar ``sum_b w_b l_b / (sum_b w_b + 1e-5)``; 0 when no image counts.
    """
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    weight = image_weight.to(logits.dtype)
    return (weight * losses.sum(dim=1).mean(dim=(1, 2))).sum() / (weight.sum() + 1e-5)


@torch.no_grad()
def make_pseudo_labels(
    localizer_logits: Tensor,
    old_logits: Tensor,
    *,
    tags: Tensor,
    n_old: int,
    image: Tensor,
    alpha: float = 0.5,
    background_mix: float | None = None,
    suppress_claimed: bool = False,
    pamr_iterations: int = 10,
    pamr_dilations: Sequence[int] = (1, 2, 4, 8, 12),
    keep_unknown: bool = False,
    renormalise: bool = False,
) -> PseudoLabels:
    """Make the targets of one step from the localizer's maps in eval mode, the tags and the old model.

    The partial mask comes from the refined maps, the soft labels from the unrefined ones, as in the released code.
    Arguments as in :func:`wilson_losses`.
    """
    soft_max = at_least_float32(localizer_logits).softmax(dim=1)
    resized = F.interpolate(at_least_float32(image), size=soft_max.shape[-2:], mode="bilinear", align_corners=True)
    refined = pamr(resized, soft_max, iterations=pamr_iterations, dilations=pamr_dilations)
    partial = partial_mask(mask_by_tags(refined, tags, keep_unknown=keep_unknown))
    tagged = mask_by_tags(soft_max, tags, keep_unknown=keep_unknown)
    if renormalise:
        tagged = tagged / tagged.sum(dim=1, keepdim=True)
    soft = soft_labels(tagged, alpha=alpha)
    old_probabilities = at_least_float32(old_logits).sigmoid()
    target = segmentation_target(
        old_probabilities, soft, n_old=n_old, background_mix=background_mix, suppress_claimed=suppress_claimed
    )
    return PseudoLabels(partial, soft, target, image_weight(soft, tags, n_old=n_old))


def wilson_losses(
    *,
    loc_eval: Tensor,
    loc_raw: Tensor,
    seg_logits: Tensor,
    old_logits: Tensor,
    body: Tensor,
    old_body: Tensor,
    tags: Tensor,
    n_old: int,
    image: Tensor,
    alpha: float = 0.5,
    background_mix: float | None = None,
    suppress_claimed: bool = False,
    warm_up: bool = False,
    n_tag_columns: int | None = None,
    tag_weight: Tensor | None = None,
    encoder_reduction: Literal["mean", "channel_sum"] = "mean",
    pamr_iterations: int = 10,
    pamr_dilations: Sequence[int] = (1, 2, 4, 8, 12),
    keep_unknown: bool = False,
    renormalise: bool = False,
    ngwp_epsilon: float = 1.0,
    prior_scores: Literal["sigmoid", "softmax"] = "sigmoid",
) -> dict[str, Tensor]:
    """All losses of one incremental step; the total is their sum.

    Args:
        loc_eval: (B, C, h, w) localizer maps in eval mode, for the pseudo-labels; detached here.
        loc_raw: (B, C, h, w) localizer maps in train mode; gradient flows into localizer and backbone.
        seg_logits: (B, C, h, w) of the segmentation head, at the stride of the features.
        old_logits: (B, n_old, h, w) of the old model.
        body: (B, D, h, w) backbone output.
        old_body: the same of the old model.
        tags: (B, C - 1) over the foreground: 1 present, 0 absent, -1 or NaN unknown.
        n_old: number of old channels, background included.
        image: (B, 3, H, W), any affine scaling; its aspect is that of the maps.
        alpha: share of the hard labels in the soft ones; 0.5 in the paper.
        background_mix: None for the min rule of the target's background, else the share of the localizer.
        suppress_claimed: see :func:`segmentation_target`.
        warm_up: while the localizer is new, ``seg`` and ``sss`` are zero (with a zero gradient).
        n_tag_columns: how many of the last tag columns enter the tag loss; None: those of the new classes. C - 1
            uses tags of old classes too (the paper's table 5).
        tag_weight: see :func:`cilseg.losses.aggregate.tag_loss`.
        encoder_reduction: see :func:`encoder_distillation`.
        pamr_iterations: see :func:`cilseg.losses.pamr.pamr`; 0 leaves the maps unrefined.
        pamr_dilations: the same.
        keep_unknown: do not hide foreground classes with an unknown tag from the pseudo-labels; the released code
            hides them.
        renormalise: make the soft-max sum to one again after untagged classes are hidden; the released code does not.
        ngwp_epsilon: see :func:`cilseg.losses.aggregate.ngwp`.
        prior_scores: see :func:`localizer_distillation`.

    Returns:
        Scalars under "cls" (image tags), "loc" (old model into localizer), "enc" (features), "seg" (segmentation
        head), "sss" (localizer against its own partial mask).
    """
    n_columns = loc_raw.shape[1] - n_old if n_tag_columns is None else n_tag_columns
    losses = {
        "cls": tag_loss(loc_raw, tags[:, tags.shape[1] - n_columns :], weight=tag_weight, eps=ngwp_epsilon),
        "loc": localizer_distillation(loc_raw, old_logits, scores=prior_scores),
        "enc": encoder_distillation(body, old_body, reduction=encoder_reduction),
    }
    if warm_up:
        # Zeros that keep the head in the graph: every parameter gets a gradient, which DDP needs.
        return losses | {"seg": (at_least_float32(seg_logits) * 0.0).sum(), "sss": (loc_raw.detach() * 0.0).sum()}
    labels = make_pseudo_labels(
        loc_eval,
        old_logits,
        tags=tags,
        n_old=n_old,
        image=image,
        alpha=alpha,
        background_mix=background_mix,
        suppress_claimed=suppress_claimed,
        pamr_iterations=pamr_iterations,
        pamr_dilations=pamr_dilations,
        keep_unknown=keep_unknown,
        renormalise=renormalise,
    )
    return losses | {
        "seg": segmentation_loss(seg_logits, labels.target, labels.image_weight),
        "sss": balanced_mask_ce(loc_raw, labels.partial, tags),
    }
