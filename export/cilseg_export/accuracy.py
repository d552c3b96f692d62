"""What an artifact costs in IoU: its masks and the network's against the annotated images of the gate set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID, ClassSet
from cilseg.errors import ArtifactError
from cilseg_export.limits import ParityLimits
from cilseg_serve.preprocessing import restore_mask

Answer = Callable[[npt.NDArray[np.uint8]], Mapping[str, npt.NDArray[Any]]]
"""Images ``(N, H, W, 3)`` uint8 -> outputs by name, ``mask`` ``(N, H, W)`` among them: ``Runtime.run`` of any one."""
Confusion = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image as the network sees it ``(h, w, 3)``, and its truth ``(H, W)`` in class ids, 255 what does not count."""

    name: str
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]


def confusion_of(
    answer: Answer, images: Iterable[AnnotatedImage], *, n_classes: int, hidden: frozenset[int] = frozenset()
) -> Confusion:
    """Count the pixels of all images by true and given class, ``(C, C)`` int64, ``[truth, given]``.

    Args:
        answer: what is judged; asked one image at a time.
        images: with their truth.
        n_classes: number of classes, background included.
        hidden: ids that the images were not annotated for: left out where the truth is background.

    Raises:
        ArtifactError: a mask of another size or with other ids.
    """
    table = np.zeros((n_classes, n_classes), dtype=np.int64)
    is_hidden = np.zeros(256, dtype=bool)
    is_hidden[list(hidden)] = True
    for sample in images:
        mask = answer(sample.image[None])["mask"]
        if mask.shape != (1, *sample.image.shape[:2]) or mask.max() >= n_classes:
            raise ArtifactError(
                f"{sample.name}: the answer is {mask.shape} with ids up to {mask.max()}, expected "
                f"{(1, *sample.image.shape[:2])} and ids under {n_classes}. Export the version again."
            )
        given = restore_mask(mask[0], *sample.truth.shape)
        counted = (sample.truth != VOID_ID) & ~((sample.truth == 0) & is_hidden[given])
        pairs = sample.truth[counted].astype(np.int64) * n_classes + given[counted]
        table += np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    return table


@dataclass(frozen=True)
class ClassLoss:
    """IoU of one class in percent: the network's and the artifact's."""

    name: str
    reference: float
    given: float

    @property
    def drop(self) -> float:
        """Points of IoU lost; negative where the artifact is better."""
        return self.reference - self.given


@dataclass(frozen=True)
class Accuracy:
    """IoU of artifact and network on the same annotated images; classes that no truth shows are left out."""

    images: int
    classes: tuple[ClassLoss, ...]

    @property
    def miou_drop(self) -> float:
        """Points of mIoU lost (mean over the classes, background included)."""
        return float(np.mean([c.drop for c in self.classes]))

    @property
    def worst(self) -> ClassLoss:
        """The class that loses most."""
        return max(self.classes, key=lambda c: c.drop)

    def problems(self, limits: ParityLimits) -> tuple[str, ...]:
        """Return in words where it goes beyond the limits."""
        found = []
        if limits.max_miou_drop is not None and not self.miou_drop <= limits.max_miou_drop:
            found.append(f"mIoU is {self.miou_drop:.2f} points lower, allowed {limits.max_miou_drop:.2f}")
        if limits.max_class_drop is not None and not self.worst.drop <= limits.max_class_drop:
            found.append(
                f"IoU of {self.worst.name!r} is {self.worst.drop:.2f} points lower, allowed {limits.max_class_drop:.2f}"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "miou_drop": round(self.miou_drop, 4),
            "worst_class": self.worst.name,
            "worst_class_drop": round(self.worst.drop, 4),
            "reference_miou": round(float(np.mean([c.reference for c in self.classes])), 4),
            "classes": [
                {"name": c.name, "reference_iou": round(c.reference, 4), "iou": round(c.given, 4)} for c in self.classes
            ],
        }


def accuracy_of(reference: Confusion, given: Confusion, *, class_set: ClassSet, images: int) -> Accuracy | None:
    """Compare two tables of :func:`confusion_of` over the same ``images`` images; None where no pixel counts."""
    ious = [_iou(table) for table in (reference, given)]
    present = np.flatnonzero(reference.sum(axis=1) > 0)
    losses = tuple(ClassLoss(class_set.names[i], float(ious[0][i]), float(ious[1][i])) for i in present)
    return Accuracy(images, losses) if losses else None


def _iou(table: Confusion) -> npt.NDArray[np.float64]:
    hit = np.diag(table).astype(np.float64)
    union = table.sum(axis=0) + table.sum(axis=1) - hit
    return np.asarray(100.0 * hit / np.maximum(union, 1))
