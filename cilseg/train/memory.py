"""Which images of the base step are worth storing for later steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cilseg.bundle import Preprocessing
from cilseg.classes import VOID_ID
from cilseg.data.memory import MEMORY_FILE, StoredMemory, open_memory, pick_by_coverage, write_memory
from cilseg.data.source import Source
from cilseg.methods import Memory
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import TrainingSet, as_batch
from cilseg_serve.preprocessing import prepare

_SMALLEST_SHARE = 0.01
"""A class counts as shown from this share of an image's pixels on."""


@torch.no_grad()
def choose_memory(model: SegmentationModel, data: TrainingSet, *, budget: int, n_channels: int) -> list[int]:
    """Return the rows of ``data`` to store: for every class in turn the image that is least like those chosen.

    Args:
        model: its pooled body features say how alike two images are.
        data: images with channel masks.
        budget: number of images.
        n_channels: channels of the masks, background included.
    """
    assert data.read_mask is not None
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    shown = np.zeros((data.size, n_channels - 1), dtype=bool)
    features = []
    for index in range(data.size):
        mask = data.read_mask(index)
        share = np.bincount(mask[mask != VOID_ID], minlength=n_channels)[1:n_channels] / mask.size
        shown[index] = share >= _SMALLEST_SHARE
        pixels = as_batch(data.read_image(index), device)
        features.append(model.backbone(model.normalise(pixels)).float().mean(dim=(2, 3))[0].cpu().numpy())
    model.train(training)
    return pick_by_coverage(shown, np.stack(features), budget=budget)


def store_memory(
    model: SegmentationModel, data: TrainingSet, source: Source, folder: Path, *, budget: int, n_channels: int
) -> None:
    """Pick images of ``source``, whose training set is ``data``, and write them with their masks into ``folder``."""
    assert data.read_mask is not None
    rows = choose_memory(model, data, budget=budget, n_channels=n_channels)
    masks = [data.read_mask(row) for row in rows]
    write_memory(folder / MEMORY_FILE, [source.image_paths[row] for row in rows], masks, n_channels=n_channels)


def stored_memory(folder: Path | None, preprocessing: Preprocessing) -> Memory | None:
    """Return what :func:`store_memory` wrote, as the network sees it; None where there is nothing.

    Raises:
        ArtifactError: the archive is damaged.
    """
    stored = open_memory(folder)
    if stored is None:
        return None
    reader = partial(_read_prepared, stored, preprocessing)
    return Memory(len(stored.names), reader, stored.mask, stored.n_channels)


def _read_prepared(stored: StoredMemory, preprocessing: Preprocessing, index: int) -> npt.NDArray[np.uint8]:
    return prepare(stored.image(index), preprocessing)
