from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilseg.errors import InputError
from cilseg_serve import tiling
from cilseg_serve.tiling import RowUpsampler, plan_axis

tilings = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(0, 6)).map(
    lambda t: {"stride": t[0], "tile_px": t[0] * t[1], "overlap_px": t[0] * min(t[2], t[1] // 2)}
)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 400), tiling=tilings)
def test_tiles_cover_every_pixel_and_weights_sum_to_one(length: int, tiling: dict[str, Any]) -> None:
    axis = plan_axis(length, **tiling)
    covered = np.zeros(length, int)
    total = np.zeros(axis.cells)
    settled = 0
    for tile in axis:
        pixels, cells = axis.pixels(tile), axis.cell_slice(tile)
        assert pixels.start % axis.stride == 0
        assert 0 < pixels.stop - pixels.start <= axis.tile_px
        # A network that pads to its stride answers this tile with exactly these cells.
        assert cells.start * axis.stride == pixels.start
        assert cells.stop - cells.start == -(-(pixels.stop - pixels.start) // axis.stride)
        assert cells.start >= settled, "a cell that was called settled is touched again"
        settled = axis.settled_cells(tile)
        covered[pixels] += 1
        assert (axis.weights[tile] >= 0).all()
        total[cells] += axis.weights[tile]
    assert (covered > 0).all()
    assert settled == axis.cells
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    starts = np.array(axis.starts_px)
    assert (np.diff(starts) > 0).all()
    if len(starts) > 1:
        assert (starts[:-1] + axis.tile_px - starts[1:] >= tiling["overlap_px"]).all()


wide_overlaps = st.tuples(st.integers(1, 8), st.integers(8, 20), st.integers(4, 10)).map(
    lambda t: {"stride": t[0], "tile_px": t[0] * t[1], "overlap_px": t[0] * min(t[2], t[1] // 2)}
)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 300), tiling=wide_overlaps)
def test_outer_quarter_of_an_overlap_counts_nothing(length: int, tiling: dict[str, Any]) -> None:
    axis = plan_axis(length, **tiling)
    quarter = tiling["overlap_px"] // axis.stride // 4
    assert quarter > 0
    for tile in axis:
        if tile > 0:
            assert (axis.weights[tile][:quarter] == 0).all()
        if tile < len(axis.starts_px) - 1:
            assert (axis.weights[tile][-quarter:] == 0).all()


@pytest.mark.parametrize(
    ("tiling", "words"),
    [
        ({"tile_px": 100, "overlap_px": 32, "stride": 16}, "both must be multiples"),
        ({"tile_px": 64, "overlap_px": 8, "stride": 16}, "both must be multiples"),
        ({"tile_px": 0, "overlap_px": 0, "stride": 1}, "Tiles of 0 px"),
        ({"tile_px": 64, "overlap_px": 48, "stride": 16}, "more than half of a tile"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiling: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_axis(500, **tiling)


def interpolated(logits: np.ndarray, height: int, width: int, stride: int) -> np.ndarray:
    """Bilinear without corner alignment by its definition: clamp((p + 1/2) / s - 1/2), one pixel at a time."""

    def along(values: np.ndarray, length: int) -> np.ndarray:
        out = np.empty((*values.shape[:-1], length))
        for pixel in range(length):
            at = max(0.0, (pixel + 0.5) / stride - 0.5)
            low = min(int(at), values.shape[-1] - 1)
            high = min(low + 1, values.shape[-1] - 1)
            out[..., pixel] = values[..., low] * (1 - (at - low)) + values[..., high] * (at - low)
        return out

    return along(along(logits.swapaxes(1, 2), height).swapaxes(1, 2), width)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    stride=st.integers(1, 8),
    chunk=st.sampled_from([1, 300, 1_000_000]),
    data=st.data(),
)
def test_rows_are_upsampled_as_the_whole_is(height: int, width: int, stride: int, chunk: int, data: Any) -> None:
    cells = -(-height // stride), -(-width // stride)
    logits = np.random.default_rng(height * 41 + width).normal(size=(3, *cells)).astype(np.float32)
    expected = interpolated(logits.astype(np.float64), height, width, stride)
    upsampler = RowUpsampler(height, width, stride=stride)
    done, bottom = 0, 0
    while done < cells[0]:
        count = data.draw(st.integers(1, cells[0] - done))
        with mock.patch.object(tiling, "_CHUNK_PIXELS", chunk):
            pieces = list(upsampler.push(logits[:, done : done + count], last=done + count == cells[0]))
        for top, planes in pieces:
            assert top == bottom
            rows = np.stack([planes.plane(channel) for channel in range(3)])
            np.testing.assert_allclose(rows, expected[:, top : top + rows.shape[1]], atol=1e-5)
            ids, sure = planes.winners(confidence=True)
            np.testing.assert_array_equal(ids, rows.argmax(axis=0))
            np.testing.assert_allclose(sure, (np.exp(rows) / np.exp(rows).sum(axis=0)).max(axis=0), rtol=1e-5)
            bottom += rows.shape[1]
        done += count
    assert bottom == height
