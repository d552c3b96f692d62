"""Which old classes the old model sees in a new one: measured on tagged images, or told by class names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cilseg.classes import normalise_name
from cilseg.data.tags import FEW_NEGATIVES
from cilseg.errors import FaultCollector, did_you_mean
from cilseg.losses.exclusive import look_alike_weights
from cilseg.methods.base import Stage
from cilseg.methods.wilson import Wilson
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import TrainingSet, as_batch

FEW = 3
"""Fewer images than these leave an old class without a word beside look-alikes."""
_SEEN = 0.02
_LOGGER = logging.getLogger(__name__)


@torch.no_grad()
def measured_weights(
    first: Wilson, old_model: SegmentationModel, data: TrainingSet, stage: Stage, *, share: float
) -> Tensor:
    """Return :func:`look_alike_weights` over the tagged images, (n_new, n_old).

    Args:
        first: after the first round; its answers say where the new classes are.
        old_model: the parent.
        data: with tags.
        stage: of the run.
        share: of the localizer in these answers.
    """
    assert data.tags is not None
    n_old = old_model.n_classes
    n_new = first.model.n_classes - n_old
    claimed, everywhere = torch.zeros(n_new, n_old), torch.zeros(n_new, n_old)
    mass, cells = torch.zeros(n_new, 1), torch.zeros(n_new, 1)
    for index in range(data.size):
        tags = torch.from_numpy(data.tags[index]).float()
        shown = torch.nonzero(tags[n_old - 1 :] > 0)[:, 0].tolist()
        if not shown:
            continue
        image = as_batch(data.read_image(index), stage.device)
        with stage.autocast():
            scores = first.class_scores(image, tags[None].to(stage.device), localizer_share=share)[0].cpu()
            old = old_model(image)[0].float().sigmoid().cpu()
        old = old / old.sum(dim=0, keepdim=True).clamp(min=1e-6)
        for new in shown:
            claim = scores[n_old + new].float()
            claimed[new] += (old * claim).sum(dim=(1, 2))
            everywhere[new] += old.sum(dim=(1, 2))
            mass[new] += claim.sum()
            cells[new] += claim.numel()
    return look_alike_weights(claimed / mass.clamp(min=1e-6), everywhere / cells.clamp(min=1))


@torch.no_grad()
def rarely_seen(old_model: SegmentationModel, data: TrainingSet, rows: Sequence[int], stage: Stage) -> list[int]:
    """Return the old foreground channels that the old model sees in fewer than ``FEW`` of the images ``rows``.

    An image shows a class where it wins at least ``_SEEN`` of the cells.
    """
    old_model.to(stage.device)
    seen = torch.zeros(old_model.n_classes, dtype=torch.int64)
    for index in rows:
        image = as_batch(data.read_image(index), stage.device)
        with stage.autocast():
            winners = old_model(image)[0].argmax(dim=0)
        share = torch.bincount(winners.flatten().cpu(), minlength=old_model.n_classes) / winners.numel()
        seen += share >= _SEEN
    return [k for k in range(1, old_model.n_classes) if seen[k] < FEW]


def warn_of_rare(
    old_model: SegmentationModel,
    data: TrainingSet,
    negatives: Sequence[int],
    stage: Stage,
    *,
    class_names: Sequence[str],
) -> None:
    """Say which old classes nothing speaks for once a new class looks like them.

    Args:
        old_model: the parent.
        data: the step's images.
        negatives: of ``data``, those that show no new class.
        stage: of the run.
        class_names: of the channels, background first.
    """
    if negatives and (rare := rarely_seen(old_model, data, negatives, stage)):
        _LOGGER.warning(
            "The parent sees %s in fewer than %d of the %d images that show no new class; where a new class looks "
            "alike, that may cost the old one much. Add images that show it and no new class: --negatives DIR.",
            ", ".join(class_names[k] for k in rare),
            FEW,
            len(negatives),
        )


def warn_of_few(count: int, *, unused: str) -> None:
    """Say that so few images lack every new class that the step is WILSON's, and what it does not use."""
    _LOGGER.warning(
        "%d images show no new class, fewer than %d, so nothing tells old classes from new ones. This trains WILSON's "
        "losses in one round, slowly: old classes are mostly kept, new ones learned far less well%s. Add images that "
        "show old classes and no new one: --negatives DIR.",
        count,
        FEW_NEGATIVES,
        f" ({unused} are not used)" if unused else "",
    )


def weights_of(given: Mapping[str, Mapping[str, float]], class_names: Sequence[str], n_old: int) -> Tensor:
    """Return weights given by class names as a matrix (n_new, n_old).

    Raises:
        InputError: names that are no new or no old class of the step, all of them.
    """
    old, new = class_names[:n_old], class_names[n_old:]
    faults = FaultCollector("update.tags.look_alike_weights")
    weights = torch.zeros(len(new), n_old)
    for name, row in ((normalise_name(n), r) for n, r in given.items()):
        if name not in new:
            faults.add(f"{name!r} is no new class of this step.{did_you_mean(name, new)}")
        for other, weight in ((normalise_name(n), w) for n, w in row.items()):
            if other not in old[1:]:
                faults.add(f"{other!r}, under {name!r}, is no old class.{did_you_mean(other, old[1:])}")
            elif name in new:
                weights[new.index(name), old.index(other)] = weight
    faults.raise_if_any(f"New: {', '.join(new)}. Old: {', '.join(old[1:])}. With null the weights are measured.")
    return weights


def names_of(weights: Tensor, class_names: Sequence[str], n_old: int) -> dict[str, dict[str, float]]:
    """Return the matrix as :func:`weights_of` takes it; the background has no weight."""
    old, new = class_names[1:n_old], class_names[n_old:]
    return {name: dict(zip(old, row[1:].tolist(), strict=True)) for name, row in zip(new, weights, strict=True)}
