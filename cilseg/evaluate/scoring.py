"""Scores of one dataset-level confusion matrix.

The literature mixes three ways to group the classes of an incremental task:

    A   old and new without background, all = every foreground class           (MiB)
    B   background counted as an old class, all = every class                  (PLOP, SDR)
    C   old and new without background, all = every class, background included (RECALL, WILSON)

What is reported under the bare names old, new, all is convention C. A class that the truth lacks has no score (NaN)
and leaves every mean; its false positives still hurt the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cilseg.classes import ClassSet
from cilseg.errors import FaultCollector, InputError

Floats = npt.NDArray[np.float64]
Group = Literal["old", "new", "all"]
Convention = Literal["A", "B", "C"]

#: The released codes of MiB, WILSON and PIFS add this to every denominator.
RELEASED_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a confusion matrix ``[truth, prediction]``; all shares in 0 .. 1, NaN where nothing can be said.

    Args:
        confusion: (C, C) counts, background first.
        epsilon: added to the denominators; :data:`RELEASED_EPSILON` reproduces published numbers to the last digit.

    Raises:
        InputError: the matrix is not square, empty or holds negative counts.
    """

    confusion: npt.NDArray[np.int64]
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        counts = np.asarray(self.confusion)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
            raise InputError(f"A confusion matrix is square, got shape {counts.shape}; sum image stacks first.")
        if (counts < 0).any():
            raise InputError("A confusion matrix holds counts; got negative ones.")

    @cached_property
    def truth_pixels(self) -> Floats:
        """(C,) pixels of each class in the truth."""
        return np.asarray(self.confusion.sum(axis=1), dtype=np.float64)

    @cached_property
    def predicted_pixels(self) -> Floats:
        """(C,) pixels predicted as each class."""
        return np.asarray(self.confusion.sum(axis=0), dtype=np.float64)

    @cached_property
    def _hits(self) -> Floats:
        return np.asarray(np.diag(self.confusion), dtype=np.float64)

    @cached_property
    def class_iou(self) -> Floats:
        """(C,) intersection over union, NaN for a class without truth."""
        union = self.truth_pixels + self.predicted_pixels - self._hits
        return self._share(self._hits, union, defined=self.truth_pixels > 0)

    @cached_property
    def class_accuracy(self) -> Floats:
        """(C,) share of the true pixels that were found (recall), NaN for a class without truth."""
        return self._share(self._hits, self.truth_pixels, defined=self.truth_pixels > 0)

    @cached_property
    def class_precision(self) -> Floats:
        """(C,) share of the predicted pixels that are right, 0 for a class that is never predicted."""
        nonzero = self.predicted_pixels > 0
        return np.where(nonzero, self._share(self._hits, self.predicted_pixels, defined=nonzero), 0.0)

    @cached_property
    def overall_accuracy(self) -> float:
        """Share of all pixels that are right."""
        total = float(self.truth_pixels.sum())
        return float(self._hits.sum()) / total if total else float("nan")

    @cached_property
    def mean_accuracy(self) -> float:
        """Mean of :attr:`class_accuracy` over the classes with truth."""
        return mean_of_defined(self.class_accuracy)

    @cached_property
    def mean_precision(self) -> float:
        """Mean of :attr:`class_precision` over every class, as in the released metric."""
        return float(self.class_precision.mean())

    @cached_property
    def mean_iou(self) -> float:
        """Mean of :attr:`class_iou` over the classes with truth, background included."""
        return mean_of_defined(self.class_iou)

    def grouped(self, *, old: Sequence[int], new: Sequence[int]) -> dict[Convention, dict[Group, float]]:
        """See :func:`grouped`."""
        return grouped(self.class_iou, old=old, new=new)

    def reported(self, class_set: ClassSet, *, since_step: int | None = None) -> dict[Group, float]:
        """Return old, new and all in convention C.

        Args:
            class_set: of the model; as many classes as the matrix.
            since_step: classes of this step and later are new, earlier ones old. None: the last step's are new, and
                those of a base model (one step only) are old.

        Raises:
            InputError: the class set has another length.
        """
        if len(class_set) != len(self.confusion):
            raise InputError(
                f"The confusion matrix has {len(self.confusion)} classes, the class set {len(class_set)}; "
                "evaluate with the class set of the model."
            )
        first_new = max(1, class_set.last_step) if since_step is None else since_step
        steps = [entry.step for entry in class_set.entries]
        old = [i for i in range(1, len(steps)) if steps[i] < first_new]
        new = [i for i in range(1, len(steps)) if steps[i] >= first_new]
        return self.grouped(old=old, new=new)["C"]

    def _share(self, part: Floats, whole: Floats, *, defined: npt.NDArray[np.bool_]) -> Floats:
        result = np.full(len(part), np.nan)
        np.divide(part, whole + self.epsilon, out=result, where=defined)
        return result


def mean_of_defined(values: Floats) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def grouped(class_iou: Floats, *, old: Sequence[int], new: Sequence[int]) -> dict[Convention, dict[Group, float]]:
    """Mean IoU of old, new and all classes in the conventions A, B and C (top of this module).

    Args:
        class_iou: (C,) with NaN for classes without truth, background first.
        old: ids of the old foreground classes.
        new: ids of the new foreground classes.

    Returns:
        ``{"A": {"old", "new", "all"}, "B": ..., "C": ...}``; NaN for a group without any scored class.

    Raises:
        InputError: an id is background, out of range, or in both groups.
    """
    _check_groups(len(class_iou), old=old, new=new)
    old_mean, new_mean = mean_of_defined(class_iou[list(old)]), mean_of_defined(class_iou[list(new)])
    foreground = mean_of_defined(class_iou[[*old, *new]])
    everything = mean_of_defined(class_iou[[0, *old, *new]])
    return {
        "A": {"old": old_mean, "new": new_mean, "all": foreground},
        "B": {"old": mean_of_defined(class_iou[[0, *old]]), "new": new_mean, "all": everything},
        "C": {"old": old_mean, "new": new_mean, "all": everything},
    }


def recall_rule(confusion: npt.NDArray[np.int64], *, old: Sequence[int], new: Sequence[int]) -> dict[Group, float]:
    """Convention C as RECALL counts it: a class counts as soon as it is in the truth OR predicted.

    A class that the truth lacks but the model predicts scores 0 and stays in the mean.

    Args:
        confusion: (C, C) ``[truth, prediction]``.
        old: ids of the old foreground classes.
        new: ids of the new foreground classes.

    Raises:
        InputError: see :func:`grouped`.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = np.full(len(hits), np.nan)
    np.divide(hits, union, out=iou, where=union > 0)
    return grouped(iou, old=old, new=new)["C"]


def few_shot_scores(class_iou: Floats, *, base: Sequence[int], novel: Sequence[int]) -> dict[str, float]:
    """Base, novel and their harmonic mean as PIFS counts them: absent classes count as 0, base holds background.

    Args:
        class_iou: (C,) with NaN for classes without truth, background first.
        base: ids of the base foreground classes; background is added.
        novel: ids of the novel classes.

    Returns:
        ``{"base", "novel", "harmonic_mean"}``; the harmonic mean is 0 when either is 0.

    Raises:
        InputError: see :func:`grouped`.
    """
    _check_groups(len(class_iou), old=base, new=novel)
    filled = np.nan_to_num(class_iou, nan=0.0)
    base_mean = float(filled[[0, *base]].mean())
    novel_mean = float(filled[list(novel)].mean()) if len(novel) else float("nan")
    total = base_mean + novel_mean
    harmonic = 2.0 * base_mean * novel_mean / total if total != 0 else 0.0
    return {"base": base_mean, "novel": novel_mean, "harmonic_mean": harmonic}


def _check_groups(n_classes: int, *, old: Sequence[int], new: Sequence[int]) -> None:
    faults = FaultCollector("Class groups")
    for name, ids in (("old", old), ("new", new)):
        wrong = sorted(i for i in ids if not 1 <= i < n_classes)
        if wrong:
            faults.add(f"{name}: ids {wrong} are not foreground ids 1 .. {n_classes - 1}.")
    if twice := sorted(set(old) & set(new)):
        faults.add(f"ids {twice} are both old and new.")
    faults.raise_if_any("Name every foreground class once; background (0) is added where a convention wants it.")
