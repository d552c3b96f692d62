"""Segment images of any size: overlapping tiles whose logits are blended, in memory that does not grow with the height.

Logits are added on the logit grid of the whole image and upsampled afterwards, the way the graph itself does. So a
network whose answer at a pixel depends on no more than a quarter of the overlap around it gives the answer that it
gives on the whole image, up to the last bits of floating-point sums. A network that looks at everything it is given
(the pooled branch of DeepLabV3) sees one tile instead of the image; its logits then pass smoothly from tile to tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cilseg.errors import ArtifactError, InputError
from cilseg_serve.images import ImageLike, as_rgb_array
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.tiling import Axis, RowUpsampler, check_tiles, plan_axis

Reader: TypeAlias = Callable[[slice, slice], npt.NDArray[np.uint8]]
"""Gives the pixels of (rows, columns) as ``(h, w, 3)`` uint8 RGB."""
OnTile: TypeAlias = Callable[[int, int], None]
_Value = TypeVar("_Value", np.uint8, np.float32)
_PROBE_PX = 64


@dataclass(frozen=True)
class Band:
    """Rows of the answer from pixel row ``top`` on: ``mask`` ``(n, W)`` uint8, ``confidence`` float32 or ``None``."""

    top: int
    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32] | None


class SlidingWindow:
    """Tiles of a large image through a :class:`~cilseg_serve.Segmenter`; threads may share it.

    Every tile goes to the network at the image's own scale: ``short_side_px`` of the model is not applied. A model
    without logits (``cilseg export --logits``) is blended label by label: each pixel takes the answer of the tile that
    weighs most there, times its confidence if the model gives one.

    Memory beside the network's own, in bytes, for an image ``W`` px wide, ``C`` classes, and ``s`` pixels per logit:
    about ``4 C W tile_px / s^2`` for the logits of one row of tiles, ``3 tile_px^2`` for a tile and 30 MB for
    upsampling; without logits ``9 W tile_px`` or less. The height costs nothing.

    Args:
        segmenter: the model.
        tile_px: side of a tile, a multiple of the network's stride.
        overlap_px: how far neighbours overlap, likewise; at most half a tile; ``None`` is a quarter.

    Raises:
        InputError: lengths that do not fit.
        ArtifactError: logits that fit neither the class set nor a fixed stride.

    Example:
        >>> window = SlidingWindow(Segmenter("fields@production"), tile_px=1024)  # doctest: +SKIP
        >>> window.segment("village.png").coverage                                # doctest: +SKIP
        {'background': 0.4, 'wheat': 0.6}
    """

    def __init__(self, segmenter: Segmenter, *, tile_px: int = 1024, overlap_px: int | None = None) -> None:
        self.segmenter = segmenter
        self.tile_px = tile_px
        self.overlap_px = tile_px // 4 if overlap_px is None else overlap_px
        check_tiles(tile_px=self.tile_px, overlap_px=self.overlap_px)
        self.blends_logits = segmenter.has_logits
        self._stride = _stride_of(segmenter) if self.blends_logits else 1
        check_tiles(tile_px=self.tile_px, overlap_px=self.overlap_px, stride=self._stride)

    def segment(self, image: ImageLike, *, confidence: bool = False, on_tile: OnTile | None = None) -> Segmentation:
        """Segment one image (path, Pillow image, or ``(H, W, 3)`` uint8 RGB array) of any size.

        Raises:
            InputError: the image cannot be read, or ``confidence`` is asked of a model with neither logits nor
                confidence.
            CilsegError: the runtime failed.
        """
        array = as_rgb_array(image)
        height, width = array.shape[:2]
        mask = np.empty((height, width), dtype=np.uint8)
        sure = np.empty((height, width), dtype=np.float32) if confidence else None
        bands = self.bands(
            lambda rows, columns: array[rows, columns], height, width, confidence=confidence, on_tile=on_tile
        )
        for band in bands:
            rows = slice(band.top, band.top + len(band.mask))
            mask[rows] = band.mask
            if sure is not None and band.confidence is not None:
                sure[rows] = band.confidence
        classes = self.segmenter.class_set
        return Segmentation(mask, class_names=classes.names, palette=classes.palette, confidence=sure)

    def bands(
        self, read: Reader, height: int, width: int, *, confidence: bool = False, on_tile: OnTile | None = None
    ) -> Iterator[Band]:
        """Segment what ``read`` gives, top to bottom, without ever holding the whole image.

        The bands cover every row once, in order. ``on_tile`` is called with (tiles done, tiles in all).

        Raises:
            InputError: ``confidence`` is asked of a model with neither logits nor confidence.
            CilsegError: the runtime failed.
        """
        if confidence and not self.blends_logits and not self.segmenter.has_confidence:
            raise InputError(
                f"{self.segmenter.name} was exported without confidence and logits. Export it again with: "
                "cilseg export REF --logits"
            )
        down, across = (
            plan_axis(length, tile_px=self.tile_px, overlap_px=self.overlap_px, stride=self._stride)
            for length in (height, width)
        )
        progress = _Progress(len(down.starts_px) * len(across.starts_px), on_tile)
        blend = self._blended if self.blends_logits else self._voted
        yield from blend(read, down, across, confidence, progress)

    def _blended(self, read: Reader, down: Axis, across: Axis, confidence: bool, progress: _Progress) -> Iterator[Band]:
        """Weighted sums of logits on the logit grid, upsampled as soon as no later tile touches them."""
        upsampler = RowUpsampler(down.length_px, across.length_px, stride=self._stride)
        count = len(self.segmenter.class_set)
        sums = np.zeros((count, 0, across.cells), dtype=np.float32)
        top = 0
        for row in down:
            place = down.cell_slice(row)
            grown = np.zeros((count, place.stop - top, across.cells), dtype=np.float32)
            grown[:, : sums.shape[1]] = sums
            sums = grown
            for column in across:
                tile = np.ascontiguousarray(read(down.pixels(row), across.pixels(column)))
                logits = self.segmenter.run_graph(tile[None], ("logits",))[0][0]
                weight = down.weights[row][:, None] * across.weights[column][None]
                sums[:, place.start - top :, across.cell_slice(column)] += logits * weight
                progress.step()
            settled = down.settled_cells(row)
            for first, planes in upsampler.push(sums[:, : settled - top], last=settled == down.cells):
                yield Band(first, *planes.winners(confidence=confidence))
            sums, top = sums[:, settled - top :], settled

    def _voted(self, read: Reader, down: Axis, across: Axis, confidence: bool, progress: _Progress) -> Iterator[Band]:
        """Labels of the tile with the largest weight (times confidence) at each pixel."""
        wanted = ("mask", "confidence") if self.segmenter.has_confidence else ("mask",)
        votes = np.zeros((0, across.length_px), dtype=np.float32)
        labels, sure = votes.astype(np.uint8), votes
        top = 0
        for row in down:
            place = down.pixels(row)
            height = place.stop - top
            votes, labels, sure = _grown(votes, height, fill=-1), _grown(labels, height), _grown(sure, height)
            for column in across:
                tile = np.ascontiguousarray(read(place, across.pixels(column)))
                answer, *rest = (output[0] for output in self.segmenter.run_graph(tile[None], wanted))
                weight = down.weights[row][:, None] * across.weights[column][None]
                vote = weight * rest[0] if rest else weight
                here = (slice(place.start - top, None), across.pixels(column))
                wins = vote > votes[here]
                votes[here][wins] = vote[wins]
                labels[here][wins] = answer[wins]
                if rest:
                    sure[here][wins] = rest[0][wins]
                progress.step()
            settled = down.settled_cells(row) - top
            yield Band(top, labels[:settled], sure[:settled] if confidence else None)
            votes, labels, sure, top = votes[settled:], labels[settled:], sure[settled:], top + settled


def _grown(rows: npt.NDArray[_Value], height: int, *, fill: float = 0) -> npt.NDArray[_Value]:
    """Return ``(height, W)`` that begins with ``rows``."""
    grown = np.full((height, rows.shape[1]), fill, dtype=rows.dtype)
    grown[: len(rows)] = rows
    return grown


class _Progress:
    def __init__(self, total: int, on_tile: OnTile | None) -> None:
        self._done, self._total, self._on_tile = 0, total, on_tile

    def step(self) -> None:
        self._done += 1
        if self._on_tile is not None:
            self._on_tile(self._done, self._total)


def _stride_of(segmenter: Segmenter) -> int:
    """Ask the network how many pixels one logit stands for."""
    probe = np.zeros((1, _PROBE_PX, _PROBE_PX, 3), dtype=np.uint8)
    shape = segmenter.run_graph(probe, ("logits",))[0].shape
    if shape[:2] != (1, len(segmenter.class_set)) or shape[2] != shape[3] or _PROBE_PX % shape[2]:
        raise ArtifactError(
            f"{segmenter.name}: logits of a {_PROBE_PX} px image have shape {shape}, expected "
            f"(1, {len(segmenter.class_set)}, h, h) with h a divisor of {_PROBE_PX}. Export the model again."
        )
    return _PROBE_PX // int(shape[2])
