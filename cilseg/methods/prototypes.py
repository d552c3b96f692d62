"""Class prototypes between steps: measured after base training, kept with the version, read by later steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cilseg.errors import ArtifactError
from cilseg.losses.prototypes import labels_at, update_prototypes
from cilseg.methods.base import Stage
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import TrainingSet, epoch_batches

PROTOTYPES = "prototypes.safetensors"
_BATCH = 16


class Prototypes(NamedTuple):
    """Mean body feature of each class of a model, background first."""

    means: Tensor  #: (C, D); zero for a class not met yet
    counts: Tensor  #: (C,) pixels behind each


@torch.no_grad()
def measure_prototypes(model: SegmentationModel, data: TrainingSet, stage: Stage) -> Prototypes:
    """Return the mean body feature of each class over the crops of one epoch, in evaluation mode."""
    model.to(stage.device).eval()
    channels, classes = model.backbone.channels, model.n_classes
    means = torch.zeros(classes, channels, device=stage.device, dtype=torch.float64)
    counts = torch.zeros(classes, device=stage.device, dtype=torch.float64)
    for batch in epoch_batches(data, 0, batch_size=min(_BATCH, data.size)):
        with stage.autocast():
            body = model.backbone(model.normalise(batch["image"].to(stage.device)))
        labels = labels_at(batch["mask"].to(stage.device), (body.shape[-2], body.shape[-1]))
        means, counts = update_prototypes(means, counts, features=body, labels=labels, skip_background=False)
    return Prototypes(means.float(), counts.float())


def save_prototypes(prototypes: Prototypes, folder: Path) -> None:
    """Write prototypes of all classes of a model into ``folder``."""
    save_file({key: value.cpu().contiguous() for key, value in prototypes._asdict().items()}, folder / PROTOTYPES)


def load_prototypes(folder: Path | None) -> Prototypes | None:
    """Read what :func:`save_prototypes` wrote; None where there is nothing.

    Raises:
        ArtifactError: the file is damaged.
    """
    if folder is None or not (folder / PROTOTYPES).is_file():
        return None
    try:
        return Prototypes(**load_file(folder / PROTOTYPES))
    except (SafetensorError, OSError, TypeError) as exc:
        raise ArtifactError(f"Prototypes {folder / PROTOTYPES} cannot be read: {exc}. Copy the version again.") from exc
