"""RECALL's labels and its order of batches: new images inpainted, replayed ones labelled, both in turn.

Source: Maracani, Michieli, Toldo, Zanuttigh, "RECALL: Replay-based Continual Learning in Semantic Segmentation", ICCV
2021, and its released code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from cilseg.classes import VOID_ID
from cilseg.losses.precision import at_least_float32


def seen_cross_entropy(logits: Tensor, target: Tensor, *, seen: Collection[int]) -> Tensor:
    """Soft-max cross-entropy over all channels, mean over the pixels whose label is one of ``seen``.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w).
        seen: channel ids of the classes of the step, old and new; other labels and 255 leave the mean.

    Returns:
        Scalar; 0 without such a pixel.
    """
    wanted = torch.isin(target, torch.tensor(sorted(seen), device=target.device))
    labels = torch.where(wanted, target, VOID_ID).long()
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=VOID_ID, reduction="sum")
    return total / wanted.sum().clamp(min=1)


def inpaint_background(target: Tensor, previous: Tensor) -> Tensor:
    """Let the previous model label what a mask calls background, void included. (..., H, W) each."""
    labels = torch.where(target == VOID_ID, 0, target)
    return torch.where(labels != 0, labels, previous)


def helper_labels(target: Tensor, class_ids: Sequence[int]) -> Tensor:
    """Labels of a helper that knows the classes of one step: k for the k-th of ``class_ids``, else 0."""
    labels = torch.zeros_like(target)
    for k, class_id in enumerate(class_ids, start=1):
        labels = torch.where(target == class_id, k, labels)
    return labels


def interleaved(
    new: Sequence[int], old: Sequence[int], *, new_share: int, old_share: int, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of (0, index of a new image) and (1, index of a replayed one), without end.

    The stream takes ``new_share`` new and ``old_share`` replayed images in turn, both starting over when they end, and
    is cut into batches. Equal shares of the size of a batch give batches of one kind in turn.
    """

    def forever(kind: int, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        while True:
            yield from ((kind, index) for index in indices)

    sources = forever(0, new), forever(1, old)

    def stream() -> Iterator[tuple[int, int]]:
        while True:
            yield from chain(islice(sources[0], new_share), islice(sources[1], old_share))

    images = stream()
    while True:
        yield list(islice(images, batch_size))
