"""Image tags in memory: three states per image and class, what they add up to, and whether they can be trained on."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cilseg.classes import ClassSet
from cilseg.errors import FaultCollector, did_you_mean

Untagged = Literal["absent", "unknown"]
PRESENT, ABSENT, UNKNOWN = 1, 0, -1
NEGATIVES_PER_TAGGED = 0.5
FEW_NEGATIVES = 3
"""With fewer images that lack every new class the method ``tags`` trains WILSON's losses in one round."""


@dataclass(frozen=True)
class NewClass:
    """A class that the tag list brings; ``color`` is ``#rrggbb``, or None for the default."""

    name: str
    color: str | None = None


@dataclass(frozen=True)
class Point:
    """A pixel (x to the right, y down, in pixels of the upright image) and the class that it belongs to."""

    x_px: float
    y_px: float
    name: str


@dataclass(frozen=True)
class TaggedImage:
    """An image with the classes named as present and as absent; ``file`` is absolute."""

    file: Path
    present: frozenset[str]
    absent: frozenset[str] = frozenset()
    points: tuple[Point, ...] = ()
    scribble: Path | None = None
    prior: Path | None = None


@dataclass(frozen=True)
class ClassSummary:
    """Number of images per state for one class, and in words what is missing (empty when nothing is)."""

    name: str
    is_new: bool
    present: int
    absent: int
    unknown: int
    advice: str


@dataclass(frozen=True)
class TagList:
    """Tagged images, the new classes among their tags, and what an unnamed new class means.

    ``untagged`` speaks of the new classes only; every other class is unknown in an image that does not name it.
    ``sha256`` is the hex digest of the file, empty for a list that was not read from one.
    """

    path: Path
    new_classes: tuple[NewClass, ...]
    images: tuple[TaggedImage, ...]
    untagged: Untagged
    sha256: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def new_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.new_classes)

    def state(self, image: TaggedImage, name: str) -> int:
        """Return 1 when class ``name`` is present in ``image``, 0 when absent, -1 when unknown."""
        if name in image.present:
            return PRESENT
        if name in image.absent or (self.untagged == "absent" and name in self.new_names):
            return ABSENT
        return UNKNOWN

    def states(self, class_set: ClassSet) -> npt.NDArray[np.int8]:
        """Return ``(N, n_fg)`` int8: row = image, column = class id - 1; 1 present, 0 absent, -1 unknown.

        Args:
            class_set: the classes of the model, the new ones included (:meth:`extended`).

        Raises:
            InputError: the class set lacks a class that is tagged.
        """
        table = np.full((len(self.images), len(class_set) - 1), UNKNOWN, dtype=np.int8)
        column = {name: class_set.id_of(name) - 1 for name in sorted(self._named() | set(self.new_names))}
        if self.untagged == "absent":
            table[:, [column[name] for name in self.new_names]] = ABSENT
        for row, image in enumerate(self.images):
            table[row, [column[name] for name in image.absent]] = ABSENT
            table[row, [column[name] for name in image.present]] = PRESENT
        return table

    def extended(self, parent: ClassSet) -> ClassSet:
        """Return the parent's class set with the new classes appended as its next step.

        Raises:
            InputError: a new class is in it already, or there would be more than 255.
        """
        if not self.new_classes:
            return parent
        return parent.extend(self.new_names, [c.color for c in self.new_classes], step=parent.last_step + 1)

    def summary(self, class_set: ClassSet) -> list[ClassSummary]:
        """Return one row per foreground class, new ones first; ``class_set`` may hold the new classes or not."""
        old = [name for name in class_set.foreground if name not in self.new_names]
        rows = []
        for name in (*self.new_names, *old):
            count = Counter(self.state(image, name) for image in self.images)
            advice = ""
            if name in self.new_names:
                hint = did_you_mean(name, old, cutoff=0.8)
                advice = " ".join(
                    [
                        *self._missing(name, count),
                        *([f"The name is close to that of an old class.{hint}"] if hint else []),
                    ]
                )
            elif count[PRESENT] + count[ABSENT] == 0:
                advice = "no tags: the old model speaks for it"
            rows.append(
                ClassSummary(
                    name, name in self.new_names, count[PRESENT], count[ABSENT], count[UNKNOWN], advice.strip()
                )
            )
        return rows

    @property
    def n_negatives(self) -> int:
        """Images in which every new class is absent."""
        return sum(all(self.state(image, name) == ABSENT for name in self.new_names) for image in self.images)

    def wanted_negatives(self) -> int:
        """Return how many more images without any new class would help, by what was measured on real photographs.

        One such image per two that show a new class kept the old classes where half of every batch was theirs
        (docs/tag-lists.md).
        """
        if not self.new_classes:
            return 0
        showing = sum(any(self.state(image, name) == PRESENT for name in self.new_names) for image in self.images)
        return max(0, math.ceil(NEGATIVES_PER_TAGGED * showing) - self.n_negatives)

    def with_negatives(self, files: Iterable[Path]) -> TagList:
        """Return the list with more images, tagged absent for every new class.

        Raises:
            InputError: a file that the list names as showing a new class.
        """
        named = {image.file.resolve(): image for image in self.images}
        faults = FaultCollector("Images without new classes")
        added = []
        for file in files:
            known = named.get(file.resolve())
            if known is None:
                added.append(TaggedImage(file.absolute(), frozenset(), frozenset(self.new_names)))
            elif shown := sorted(set(known.present) & set(self.new_names)):
                faults.add(f"{file} is tagged {', '.join(shown)} in {self.path}")
        faults.raise_if_any("Take these images out of the folder, or correct the list.")
        return dataclasses.replace(self, images=(*self.images, *added))

    def missing(self) -> list[str]:
        """Return one sentence per reason why the list cannot be trained on; empty when it can."""
        sentences: list[str] = []
        for name in self.new_names:
            sentences += self._missing(name, Counter(self.state(image, name) for image in self.images))
        if not self.new_classes and not self._named():
            sentences.append("no image names any class, so there is nothing to learn; add 'present' or 'absent' tags.")
        return sentences

    def _missing(self, name: str, count: Counter[int]) -> Iterator[str]:
        if not count[PRESENT]:
            yield (
                f'new class {name!r} has no image tagged present: add images that show it, with "present": ["{name}"].'
            )
        if not count[ABSENT]:
            wanted = max(1, count[PRESENT])
            yield (
                f"new class {name!r} has no image tagged absent ({count[PRESENT]} present, {count[UNKNOWN]} unknown), "
                f'and telling it apart needs some: add about {wanted} images without it, with "absent": ["{name}"]'
                + ("; or, if an unnamed class means absent in this list, --untagged absent." if count[UNKNOWN] else ".")
            )

    def _named(self) -> frozenset[str]:
        return frozenset[str]().union(*(image.present | image.absent for image in self.images))


def check_trainable(tag_list: TagList) -> None:
    """Check that every new class has images with it and images without it.

    Raises:
        InputError: a new class without present-tagged or without absent-tagged images, or a list that says nothing;
            every reason in one message.
    """
    faults = FaultCollector(f"Tag list {tag_list.path}")
    for sentence in tag_list.missing():
        faults.add(sentence)
    faults.raise_if_any("--dry-run shows how many images each class has per state.")
