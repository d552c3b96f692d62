"""Where the tiles of a large image lie and how much each counts: pure geometry, in cells of the logit grid.

One cell is ``stride`` pixels. Tiles start at whole cells, so the logits of every tile fall on the logit grid of the
whole image and can be added there, before upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError

_GRID_PX = 64
_CHUNK_PIXELS = 1_000_000
"""Pixels that are upsampled at once."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of an image.

    Attributes:
        length_px: the side of the image.
        starts_px: first pixel of each tile, ascending, multiples of ``stride``.
        tile_px: length of a tile; the last one ends with the image, and may be shorter by less than 64 px.
        stride: pixels per cell.
        weights: per tile ``(cells,)`` float32, how much it counts in each of its cells; they sum to one in every cell.
    """

    length_px: int
    starts_px: tuple[int, ...]
    tile_px: int
    stride: int
    weights: tuple[npt.NDArray[np.float32], ...]

    @property
    def cells(self) -> int:
        """Cells along the side."""
        return -(-self.length_px // self.stride)

    def pixels(self, tile: int) -> slice:
        """Pixels of a tile."""
        start = self.starts_px[tile]
        return slice(start, min(start + self.tile_px, self.length_px))

    def cell_slice(self, tile: int) -> slice:
        """Cells of a tile."""
        start = self.starts_px[tile] // self.stride
        return slice(start, start + len(self.weights[tile]))

    def settled_cells(self, tile: int) -> int:
        """How many cells from the start on no later tile touches."""
        later = self.starts_px[tile + 1 :]
        return later[0] // self.stride if later else self.cells

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.starts_px)))


def plan_axis(length_px: int, *, tile_px: int, overlap_px: int, stride: int) -> Axis:
    """Cover ``length_px`` pixels with tiles that overlap by ``overlap_px`` (the last two by more, where needed).

    The weight of a tile is zero in the outer quarter of an overlap and rises linearly over its middle half, so that a
    network whose answers reach a quarter of the overlap far gives the same as on the whole image. At the rim of the
    image a tile counts in full.

    Raises:
        InputError: lengths below one cell, or an overlap that leaves a tile no ground of its own.
    """
    check_tiles(tile_px=tile_px, overlap_px=overlap_px, stride=stride)
    if length_px <= tile_px:
        starts = [0]
    else:
        # The network may have a stride that is not known here: keep every tile on one grid, also the last.
        grid = math.gcd(tile_px - overlap_px, _GRID_PX)
        grid = stride if grid % stride else grid
        last = -(-(length_px - tile_px) // grid) * grid
        starts = [*range(0, last, tile_px - overlap_px), last]
    cells = [-(-(min(start + tile_px, length_px) - start) // stride) for start in starts]
    total = -(-length_px // stride)
    overlap = overlap_px / stride
    raw = [
        _ramp(count, overlap=overlap, first=start == 0, last=start == starts[-1])
        for start, count in zip(starts, cells, strict=True)
    ]
    summed = np.zeros(total, dtype=np.float64)
    places = [slice(start // stride, start // stride + count) for start, count in zip(starts, cells, strict=True)]
    for place, values in zip(places, raw, strict=True):
        summed[place] += values
    weights = [(values / summed[place]).astype(np.float32) for place, values in zip(places, raw, strict=True)]
    return Axis(length_px, tuple(starts), tile_px, stride, tuple(weights))


def check_tiles(*, tile_px: int, overlap_px: int, stride: int = 1) -> None:
    """Check the lengths of a tiling.

    Raises:
        InputError: see :func:`plan_axis`.
    """
    if tile_px < 1 or overlap_px < 0 or tile_px % stride or overlap_px % stride:
        raise InputError(
            f"Tiles of {tile_px} px with an overlap of {overlap_px} px do not fit a network that answers every "
            f"{stride} px: both must be multiples of it, the tile at least that. Try multiples of 64."
        )
    if 2 * overlap_px > tile_px:
        raise InputError(
            f"An overlap of {overlap_px} px is more than half of a tile of {tile_px} px. Overlap less, or tile larger."
        )


class RowUpsampler:
    """Bilinear upsampling by ``stride`` without corner alignment, as the graph does it, fed with logit rows in order.

    Args:
        height, width: size of the image in pixels; what lies beyond is cropped.
        stride: pixels per cell.
    """

    def __init__(self, height: int, width: int, *, stride: int) -> None:
        self._height, self._width, self._stride = height, width, stride
        self._next_cell = 0
        self._above: npt.NDArray[np.float32] | None = None

    def push(self, cells: npt.NDArray[np.float32], *, last: bool) -> Iterator[tuple[int, Planes]]:
        """Take the next logit rows ``(C, n, w)``; give what is settled as (first pixel row, planes of some rows).

        ``last`` says that no more rows come.
        """
        above = cells[:, :1] if self._above is None else self._above
        rows = np.concatenate([above, cells, *([cells[:, -1:]] if last else [])], axis=1)
        first = self._next_cell - 1
        step = max(1, _CHUNK_PIXELS // (self._stride * self._width))
        for start in range(0, rows.shape[1] - 1, step):
            piece = rows[:, start : start + step + 1]
            top = (first + start) * self._stride + self._stride // 2
            bottom = min(top + (piece.shape[1] - 1) * self._stride, self._height)
            if bottom > max(top, 0):
                yield max(top, 0), Planes(piece, slice(max(0, -top), bottom - top), self._width, self._stride)
        self._next_cell += cells.shape[1]
        self._above = cells[:, -1:].copy()


@dataclass(frozen=True)
class Planes:
    """Logits of some pixel rows, made one class at a time so that memory does not grow with the number of classes."""

    cells: npt.NDArray[np.float32]
    rows: slice
    width: int
    stride: int

    def plane(self, channel: int) -> npt.NDArray[np.float32]:
        """Logits of one class, ``(rows, width)``."""
        tall = _stretched(self.cells[channel], self.stride)[self.rows]
        padded = np.concatenate([tall[:, :1], tall, tall[:, -1:]], axis=1)
        offset = self.stride - self.stride // 2
        return _stretched(padded.T, self.stride)[offset : offset + self.width].T

    def winners(self, *, confidence: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]:
        """Return the class with the largest logit (the first at ties) and, on request, its soft-max."""
        best = self.plane(0).copy()
        ids: npt.NDArray[np.uint8] = np.zeros(best.shape, dtype=np.uint8)
        for channel in range(1, len(self.cells)):
            plane = self.plane(channel)
            ids[plane > best] = channel
            np.maximum(best, plane, out=best)
        if not confidence:
            return ids, None
        total = np.zeros_like(best)
        for channel in range(len(self.cells)):
            total += np.exp(self.plane(channel) - best)
        return ids, np.reciprocal(total)


def _stretched(values: npt.NDArray[np.float32], stride: int) -> npt.NDArray[np.float32]:
    """Interpolate ``(n, w)`` between the centres of its rows: ``((n - 1) * stride, w)``, from the first centre on."""
    if stride == 1:
        return values[:-1]
    # Pixel centres lie between cell centres where the stride is even, on them where it is odd.
    fraction = ((np.arange(stride) + (0.5 if stride % 2 == 0 else 0.0)) / stride).astype(np.float32)[None, :, None]
    full = values[:-1, None] * (1 - fraction) + values[1:, None] * fraction
    return full.reshape(-1, values.shape[1])


def _ramp(cells: int, *, overlap: float, first: bool, last: bool) -> npt.NDArray[np.float64]:
    """Raw weights of a tile: 1 inside, down to 0 towards sides that another tile overlaps."""
    if overlap == 0:
        return np.ones(cells)
    centres = np.arange(cells) + 0.5
    rise = np.full(cells, np.inf) if first else centres
    fall = np.full(cells, np.inf) if last else cells - centres
    ramp: npt.NDArray[np.float64] = np.clip((np.minimum(rise, fall) - overlap / 4) / (overlap / 2), 0.0, 1.0)
    return ramp
