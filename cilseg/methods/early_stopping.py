"""When to stop, from image tags alone: the epoch whose weights best rank tagged images that training does not see.

Prechelt, "Early Stopping - But When?", in Neural Networks: Tricks of the Trade, 1998, compares such rules. The score is
the average precision that the gate takes too where there are tags and no masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cilseg.errors import FaultCollector
from cilseg.evaluate.average_precision import average_precision
from cilseg.models.inference import InferenceGraph
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import ImageReader

_SHARE = 0.1
"""Of the images of each class that are tagged present, and of those tagged absent."""


def held_out(states: npt.NDArray[np.int8], names: Sequence[str], *, seed: int) -> list[int]:
    """Return which images to keep out of training: for each class a tenth of those with it, and of those without it.

    Args:
        states: (N, K) of new classes: 1 present, 0 absent, -1 unknown.
        names: (K,) of the classes, for messages.
        seed: of the choice.

    Returns:
        Indices in ascending order, at least one of either kind for each class.

    Raises:
        InputError: classes that would be left without one or the other, here or in training; all of them.
    """
    order = np.random.Generator(np.random.PCG64([seed, 5])).permutation(len(states))
    kept = np.ones(len(states), dtype=bool)
    for states_of_class in states.T:
        for state in (1, 0):
            group = order[states_of_class[order] == state]
            missing = max(1, round(_SHARE * len(group))) - int((~kept[group]).sum())
            kept[group[kept[group]][: max(0, missing)]] = False
    faults = FaultCollector("update.tags.stop_early keeps images out of training, to judge by")
    for name, states_of_class in zip(names, states.T, strict=True):
        counts = [int((states_of_class[rows] == state).sum()) for rows in (kept, ~kept) for state in (1, 0)]
        if not all(counts):
            present, absent = ((states_of_class == state).sum() for state in (1, 0))
            faults.add(f"new class {name!r} has {present} images tagged present and {absent} tagged absent, too few")
    faults.raise_if_any("Tag more images, at least two of each kind for each class, or set it to null.")
    return np.flatnonzero(~kept).tolist()


def tag_score(
    model: SegmentationModel,
    read_image: ImageReader,
    rows: Sequence[int],
    states: npt.NDArray[np.int8],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Return the mean over new classes of the average precision of their tags, 0 to 1.

    Args:
        model: its last classes are the new ones; an image scores the highest probability that a class has in it.
        read_image: index -> (H, W, 3) uint8.
        rows: (N,) indices of the images.
        states: (N, K) of the new classes: 1 present, 0 absent, -1 unknown and left out.
        autocast: makes the context of the run's precision.
    """
    graph = InferenceGraph(model, model.preprocessing)
    with autocast():
        scores = np.stack([graph.class_scores(read_image(row)) for row in rows])[:, -states.shape[1] :]
    told = states >= 0
    per_class = [average_precision(scores[told[:, k], k], states[told[:, k], k] == 1) for k in range(states.shape[1])]
    return float(np.mean(per_class))


class BestEpoch(nn.Module):
    """The weights of the best epoch so far, and the scores of all; its state is all that a resumed run needs.

    Of equally good epochs the last counts: a score that cannot rise any more ends nothing.

    Args:
        model: what is trained.
        epochs: at most.
        patience: epochs after the best one, none as good, after which training ends.
    """

    scores: Tensor

    def __init__(self, model: nn.Module, *, epochs: int, patience: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.patience = patience
        self.register_buffer("scores", torch.full((epochs,), -1.0))

    @property
    def epoch(self) -> int:
        """Number of the best epoch, from 0."""
        return int(torch.nonzero(self.scores == self.scores.max()).max())

    def add(self, model: nn.Module, epoch: int, score: float) -> bool:
        """Note the score (at least 0) of ``model`` after ``epoch``; return whether training ends."""
        self.scores[epoch] = score
        if self.epoch == epoch:
            self.model.load_state_dict(model.state_dict())
        return epoch - self.epoch >= self.patience

    def told(self) -> dict[str, object]:
        """Return what happened: scores of the epochs, and the best one, counted from 1."""
        return {"scores": [round(s, 4) for s in self.scores.tolist() if s >= 0], "best_epoch": self.epoch + 1}
