"""Labels and order of replayed images (RECALL: Maracani et al., ICCV 2021, and its released code)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID
from cilseg.data.labels import Mask
from cilseg.errors import InputError


def inpaint_background(mask: Mask, predicted: npt.NDArray[np.integer]) -> Mask:
    """Fill the background of new images with what the previous model sees there.

    Args:
        mask: (..., H, W) labels of the new classes; void is filled like background, as in the released code.
        predicted: the same shape, classes of the previous model.

    Returns:
        uint8 of that shape.

    Raises:
        InputError: shapes that differ.
    """
    if mask.shape != predicted.shape:
        raise InputError(
            f"A mask of shape {mask.shape} meets a prediction of shape {predicted.shape}; resize it first."
        )
    keep = (mask != 0) & (mask != VOID_ID)
    return np.where(keep, mask, predicted).astype(np.uint8)


def helper_labels(mask: Mask, step_ids: Sequence[int]) -> Mask:
    """Labels of a helper decoder: ``i + 1`` for the i-th class of its step, 0 for all else, void included.

    Args:
        mask: (..., H, W) class ids.
        step_ids: the ids of the step's classes.

    Returns:
        uint8 of the shape of ``mask``.
    """
    table = np.zeros(256, dtype=np.uint8)
    for position, class_id in enumerate(step_ids, start=1):
        table[class_id] = position
    labels: Mask = table[mask]
    return labels


def from_helper(predicted: npt.NDArray[np.integer], step_ids: Sequence[int]) -> Mask:
    """Translate a helper's classes back to class ids; the inverse of :func:`helper_labels`."""
    labels: Mask = np.array([0, *step_ids], dtype=np.uint8)[predicted]
    return labels


def replay_order(
    *, n_new: int, n_replay: int, take_new: int, take_replay: int, batch_size: int, n_batches: int
) -> npt.NDArray[np.int64]:
    """Order of new and replayed samples: some new, some replayed, over and over, cut into batches.

    With ``take_new = take_replay = batch_size`` batches of new and of replayed samples alternate. Either source starts
    again when it is used up, in the middle of a batch too.

    Args:
        n_new: number of new samples.
        n_replay: number of replayed samples.
        take_new: new samples per turn.
        take_replay: replayed samples per turn.
        batch_size: samples per batch.
        n_batches: number of batches.

    Returns:
        (n_batches, batch_size, 2): source (0 new, 1 replayed) and position in it.

    Raises:
        InputError: a source without samples that samples are to be taken from, or nothing to take.
    """
    if take_new + take_replay < 1 or (take_new and n_new < 1) or (take_replay and n_replay < 1):
        raise InputError(
            f"Taking {take_new} of {n_new} new and {take_replay} of {n_replay} replayed samples a turn cannot be; "
            "every source that is drawn from needs samples."
        )
    turn, offset = np.divmod(np.arange(n_batches * batch_size), take_new + take_replay)
    replayed = offset >= take_new
    fresh_at = (turn * take_new + offset) % max(n_new, 1)
    replay_at = (turn * take_replay + offset - take_new) % max(n_replay, 1)
    pairs = np.stack([replayed.astype(np.int64), np.where(replayed, replay_at, fresh_at)], axis=1)
    return pairs.reshape(n_batches, batch_size, 2)
