"""Where pixels go: from which class to which, before and after an update."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PixelFate:
    """What the pixels of one old class are called: four shares that sum to 1, before and after.

    The order is: the class itself, another old class, background, a new class.
    """

    name: str
    before: tuple[float, float, float, float]
    after: tuple[float, float, float, float]


@dataclass(frozen=True)
class ConfusionGrowth:
    """A confusion that grew: pixels of ``truth`` called ``prediction``, as shares of the pixels of ``truth``."""

    truth: str
    prediction: str
    before: float
    after: float
    grown_px: int


@dataclass(frozen=True)
class Usurpation:
    """Pixels of an old class that a new class takes, as a share of the old class's pixels."""

    old: str
    new: str
    after: float
    pixels: int


def usurpations(
    candidate: Counts, *, names: Sequence[str], old_ids: Collection[int], limit: int = 12
) -> tuple[Usurpation, ...]:
    """Return which new class takes most of which old one, largest share first, from an (N, C, C) stack."""
    after = candidate.sum(axis=0)
    new_ids = [i for i in range(1, len(names)) if i not in old_ids]
    found = [
        Usurpation(names[o], names[n], float(after[o, n] / after[o].sum()), int(after[o, n]))
        for o in old_ids
        for n in new_ids
        if after[o, n] > 0
    ]
    return tuple(sorted(found, key=lambda u: (-u.after, u.old, u.new))[:limit])


def pixel_fates(
    parent: Counts, candidate: Counts, *, names: Sequence[str], old_ids: Sequence[int]
) -> tuple[PixelFate, ...]:
    """Return the fate of each old class with truth pixels, from (N, C, C) confusion stacks of two models."""
    totals = parent.sum(axis=0), candidate.sum(axis=0)
    return tuple(
        PixelFate(names[index], _shares(totals[0][index], index, old_ids), _shares(totals[1][index], index, old_ids))
        for index in old_ids
        if totals[0][index].sum() > 0
    )


def confusion_growth(
    parent: Counts, candidate: Counts, *, names: Sequence[str], old_ids: Collection[int], limit: int = 8
) -> tuple[ConfusionGrowth, ...]:
    """Return the confusions of old classes and background that grew by most pixels, largest first.

    Growth below 1 % of the largest is left out.
    """
    before, after = parent.sum(axis=0), candidate.sum(axis=0)
    growth = after - before
    np.fill_diagonal(growth, 0)
    rows = [0, *old_ids]
    pairs = [(int(growth[t, p]), t, p) for t in rows for p in range(len(names)) if growth[t, p] > 0]
    pairs.sort(key=lambda item: (-item[0], item[1], item[2]))
    least = 0.01 * pairs[0][0] if pairs else 0.0
    return tuple(
        ConfusionGrowth(
            truth=names[truth],
            prediction=names[prediction],
            before=float(before[truth, prediction] / max(1, before[truth].sum())),
            after=float(after[truth, prediction] / max(1, after[truth].sum())),
            grown_px=pixels,
        )
        for pixels, truth, prediction in pairs[:limit]
        if pixels >= least
    )


def _shares(row: Counts, index: int, old_ids: Collection[int]) -> tuple[float, float, float, float]:
    others = [i for i in old_ids if i != index]
    new = [i for i in range(1, len(row)) if i not in old_ids]
    total = max(1, int(row.sum()))
    own, old, background, added = (int(v) for v in (row[index], row[others].sum(), row[0], row[new].sum()))
    return own / total, old / total, background / total, added / total
