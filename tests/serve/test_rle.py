from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from cilseg.errors import InputError
from cilseg_serve.rle import area_and_box, decode, encode

masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 1), fill=st.integers(0, 1)
)


@settings(max_examples=80, deadline=None)
@given(mask=masks)
def test_strings_are_those_of_pycocotools(mask: npt.NDArray[np.uint8]) -> None:
    reference = coco.encode(np.asfortranarray(mask))
    ours = encode(mask)
    assert ours == {"size": list(reference["size"]), "counts": reference["counts"].decode()}
    plain = encode(mask, compressed=False)
    assert coco.frPyObjects(plain, *mask.shape)["counts"] == reference["counts"]
    for rle in (ours, plain, {**ours, "counts": reference["counts"]}):
        np.testing.assert_array_equal(decode(rle), mask)
    area, box = area_and_box(mask)
    assert area == coco.area(reference)
    if area:
        assert list(box) == coco.toBbox(reference).tolist()


def test_long_runs_and_large_steps_back() -> None:
    mask = np.zeros((1500, 2000), np.uint8)
    mask[3, 5] = mask[700:, 900:1200] = mask[0, 1999] = 1
    reference = coco.encode(np.asfortranarray(mask))
    assert encode(mask)["counts"] == reference["counts"].decode()
    np.testing.assert_array_equal(decode(encode(mask)), mask)


def test_the_worked_example() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert encode(mask) == {"size": [3, 4], "counts": "41110O1"}
    assert encode(mask, compressed=False)["counts"] == [4, 1, 1, 2, 1, 1, 2]
    assert area_and_box(mask) == (4, (1, 0, 3, 2))
    assert area_and_box(mask * 0) == (0, (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [3, 4]}, "have the fields size"),
        ({"size": [3], "counts": []}, "have the fields size"),
        ({"size": [3, 4], "counts": [4, 1]}, "of 5 pixels do not fill 4 x 3 px"),
        ({"size": [3, 4], "counts": [13, -1]}, "do not fill"),
        ({"size": [1 << 20, 1 << 20], "counts": [1 << 40]}, "expected 1 to 1,000,000,000 pixels"),
        ({"size": [0, 4], "counts": []}, "expected 1 to"),
        ({"size": [3, 4], "counts": "4111 "}, "damaged at character 4 of 5"),
        ({"size": [3, 4], "counts": "o"}, "damaged at character 1 of 1"),
        ({"size": [3, 4], "counts": "o" * 40}, "damaged at character"),
        ({"size": [3, 4], "counts": [[12]]}, "one flat list"),
        ({"size": [3, 4], "counts": ["x"]}, "a string or a list of integers"),
    ],
)
def test_damaged_run_lengths_are_refused(rle: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode(rle)


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="at least one pixel"):
        encode(np.zeros((0, 3)))
