from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilseg.bundle import Preprocessing
from cilseg.errors import InputError
from cilseg_serve.preprocessing import MAX_NETWORK_PIXELS, network_size_hw, prepare, restore_mask

sides = st.integers(1, 90)
short_sides = st.none() | st.integers(16, 64)


def make(short_side_px: int | None) -> Preprocessing:
    return Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), short_side_px=short_side_px)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), short=st.integers(16, 1024))
def test_short_side_is_exact_and_aspect_ratio_kept(height: int, width: int, short: int) -> None:
    ideal = max(height, width) * short / min(height, width)
    if ideal * short > MAX_NETWORK_PIXELS - short:
        return
    size_hw = network_size_hw(height, width, short)
    assert min(size_hw) == short
    assert abs(max(size_hw) - ideal) <= 0.5
    assert (size_hw[0] >= size_hw[1]) == (height >= width) or size_hw[0] == size_hw[1]


@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, short=short_sides)
def test_prepared_then_restored_has_the_original_size(height: int, width: int, short: int | None) -> None:
    image = np.full((height, width, 3), 77, dtype=np.uint8)
    prepared = prepare(image, make(short))
    assert prepared.shape == (*network_size_hw(height, width, short), 3)
    assert (prepared == 77).all()
    assert restore_mask(prepared[..., 0], height, width).shape == (height, width)


@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, new_height=sides, new_width=sides)
def test_restore_takes_the_pixel_under_the_centre(height: int, width: int, new_height: int, new_width: int) -> None:
    mask = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width), dtype=np.uint8)
    rows = [math.floor(Fraction(2 * row + 1, 2) * height / new_height) for row in range(new_height)]
    columns = [math.floor(Fraction(2 * column + 1, 2) * width / new_width) for column in range(new_width)]
    np.testing.assert_array_equal(restore_mask(mask, new_height, new_width), mask[rows][:, columns])


def test_nothing_is_copied_when_the_size_is_right() -> None:
    image = np.zeros((32, 40, 3), dtype=np.uint8)
    assert prepare(image, make(None)) is image
    assert prepare(image, make(32)) is image
    assert restore_mask(image[..., 0], 32, 40).base is image


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = prepare(stripes, make(16))[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 128).max() <= 8


def test_float_confidence_is_restored_by_nearest_pixel() -> None:
    confidence = np.array([[0.25, 0.75]], dtype=np.float32)
    restored = restore_mask(confidence, 2, 4)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, [[0.25, 0.25, 0.75, 0.75]] * 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((8, 8), np.uint8, "Expected an (H, W, 3) uint8 image"),
        ((8, 8, 3), np.float32, "Use as_rgb_array() first"),
        ((1, 9_000_000, 3), np.uint8, "Crop it to a less extreme aspect ratio"),
    ],
)
def test_images_that_cannot_be_prepared(shape: tuple[int, ...], dtype: type, words: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(np.zeros(shape, dtype), make(16))
    assert words in str(caught.value)
