"""Outlines of the regions of a mask: polygons with holes, along pixel edges, exact.

Corners of the outline are found with numpy and joined by sorting: along a line of the pixel grid, corners pair up from
left to right, and likewise from top to bottom. Regions are 4-connected; where two pixels touch by a corner alone the
outline passes between them, and a ring that meets itself there is split, so that every ring is simple.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID
from cilseg.errors import InputError


@dataclass(frozen=True, eq=False)
class Polygon:
    """One region of one class.

    Attributes:
        class_id: its id.
        exterior: ``(n, 2)`` int32 corners (x, y) on the pixel grid, 0 to W and 0 to H, not repeated at the end.
        holes: the same, for each hole.
        area: pixels inside.
    """

    class_id: int
    exterior: npt.NDArray[np.int32]
    holes: tuple[npt.NDArray[np.int32], ...]
    area: int


def trace(mask: npt.NDArray[np.uint8], *, class_ids: Sequence[int] | None = None, min_area: int = 1) -> list[Polygon]:
    """Return the regions of a mask ``(H, W)`` uint8, by class, then from top to bottom.

    Filling them (pixel centres inside the exterior and outside the holes) gives the mask back, if ``min_area`` is 1.

    Args:
        class_ids: which classes; ``None``: all that occur but background and void.
        min_area: smaller regions are left out, holes are kept.

    Raises:
        InputError: not ``(H, W)`` uint8.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise InputError(f"A mask is (H, W) uint8 and not empty, got {mask.shape} {mask.dtype}.")
    occurring = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    wanted = [i for i in occurring.tolist() if i not in (0, VOID_ID)] if class_ids is None else class_ids
    return [polygon for i in wanted for polygon in _of_class(mask == i, i) if polygon.area >= min_area]


def to_geojson(polygons: Sequence[Polygon], class_names: Sequence[str]) -> dict[str, Any]:
    """Return a GeoJSON ``FeatureCollection`` in pixel coordinates (x right, y down); rings are closed."""
    features = [
        {
            "type": "Feature",
            "properties": {"class": class_names[p.class_id], "class_id": p.class_id, "area": p.area},
            "geometry": {"type": "Polygon", "coordinates": [_closed(ring) for ring in (p.exterior, *p.holes)]},
        }
        for p in polygons
    ]
    return {"type": "FeatureCollection", "features": features}


def _closed(ring: npt.NDArray[np.int32]) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]


def _of_class(inside: npt.NDArray[np.bool_], class_id: int) -> list[Polygon]:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    corner = np.array([columns[0], rows[0]], dtype=np.int32)
    rings = _rings(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    areas = [_signed_area(ring) for ring in rings]
    holes: dict[int, list[int]] = {i: [] for i, area in enumerate(areas) if area > 0}
    for hole, exterior in _parents(rings, areas).items():
        holes[exterior].append(hole)
    return [
        Polygon(
            class_id,
            rings[i] + corner,
            tuple(rings[hole] + corner for hole in holes[i]),
            areas[i] + sum(areas[hole] for hole in holes[i]),
        )
        for i in sorted(holes, key=lambda i: (int(rings[i][:, 1].min()), int(rings[i][:, 0].min())))
    ]


def _parents(rings: Sequence[npt.NDArray[np.int32]], areas: Sequence[int]) -> dict[int, int]:
    """Return the exterior of each hole.

    The pixel above a hole's highest edge is inside the region; the next ring to the left of it in its row is the
    region's exterior, or another of its holes, which begins higher up and so is known by then.
    """
    holes = [i for i, area in enumerate(areas) if area < 0]
    if not holes:
        return {}
    begins: dict[int, list[tuple[int, int]]] = {}
    wanted = {int(rings[i][:, 1].min()) - 1 for i in holes}
    for index, ring in enumerate(rings):
        for (x, bottom), (x1, top) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if x == x1 and top < bottom:  # going up, the region is to the right
                for row in wanted.intersection(range(top, bottom)):
                    begins.setdefault(row, []).append((x, index))
    for found in begins.values():
        found.sort()
    parents: dict[int, int] = {}
    for hole in sorted(holes, key=lambda i: int(rings[i][:, 1].min())):
        ring = rings[hole]
        top = int(ring[:, 1].min())
        column = int(ring[ring[:, 1] == top, 0].min())
        found = begins[top - 1]
        left = found[bisect.bisect_right(found, (column, len(rings))) - 1][1]
        parents[hole] = left if areas[left] > 0 else parents[left]
    return parents


def _rings(inside: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int32]]:
    """Return closed simple rings ``(n, 2)`` of (x, y); regions lie to the right of their direction.

    With y pointing down, exteriors have positive and holes negative area.
    """
    padded = np.pad(inside, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    total = a.astype(np.int8) + b + c + d
    crossing = (total == 2) & (a == d)
    ys, xs = np.nonzero((total & 1).astype(np.bool_) | crossing)
    twins = crossing[ys, xs]
    ys, xs, twins = (np.repeat(values, 1 + twins) for values in (ys, xs, twins))
    # Row by row: each edge along a row joins two corners that follow each other. A crossing stands there twice, for the
    # edge on its left and the edge on its right.
    across = np.arange(len(xs)) ^ 1
    second = np.zeros(len(xs), dtype=np.bool_)
    second[1:] = (xs[1:] == xs[:-1]) & (ys[1:] == ys[:-1])
    # Column by column likewise, the edge upwards first. Around the pixel above left (a) go the edges left and up; where
    # a is not set, around the one above right (b) those right and up.
    goes_down = twins & (second == a[ys, xs])
    order = np.lexsort((goes_down, ys, xs))
    down = np.empty_like(across)
    down[order[0::2]], down[order[1::2]] = order[1::2], order[0::2]
    points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    return _walked(points, across.tolist(), down.tolist(), d[ys, xs].tolist())


def _walked(
    points: Sequence[tuple[int, int]], across: Sequence[int], down: Sequence[int], below_right: Sequence[bool]
) -> list[npt.NDArray[np.int32]]:
    """Follow corners along rows and columns by turns; a ring that meets itself is split there."""
    rings: list[list[tuple[int, int]]] = []
    seen = [False] * len(points)
    for start in range(len(points)):
        # The first corner of a ring has edges to the right and down; the region lies right below it, or around it.
        corner, along_row = start, below_right[start]
        path: list[tuple[int, int]] = []
        place: dict[tuple[int, int], int] = {}
        while not seen[corner]:
            seen[corner] = True
            point = points[corner]
            if point in place:
                cut = place[point]
                rings.append(path[cut:])
                for gone in path[cut + 1 :]:
                    del place[gone]
                del path[cut + 1 :]
            else:
                place[point] = len(path)
                path.append(point)
            corner = across[corner] if along_row else down[corner]
            along_row = not along_row
        if path:
            rings.append(path)
    return [np.array(ring, dtype=np.int32) for ring in rings]


def _signed_area(ring: npt.NDArray[np.int32]) -> int:
    x, y = ring.astype(np.int64).T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2
