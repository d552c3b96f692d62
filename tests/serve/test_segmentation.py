from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cilseg.errors import InputError
from cilseg_serve import Segmentation, read_mask
from cilseg_serve.rle import decode

PALETTE = np.array([[0, 0, 0], [200, 100, 0], [0, 100, 200]], np.uint8)
NAMES = ("background", "cow", "sheep")


def make(mask: list[list[int]]) -> Segmentation:
    return Segmentation(np.array(mask, np.uint8), NAMES, PALETTE)


def test_coverage_counts_every_class_and_void_to_none() -> None:
    result = make([[0, 0, 1, 1], [0, 0, 1, 255]])
    assert result.coverage == {"background": 0.5, "cow": 0.375, "sheep": 0.0}
    assert result.present == ("cow",)
    assert result.legend == {"cow": "#c86400"}


def test_overlay_blends_inside_darkens_borders_and_leaves_background() -> None:
    mask = np.zeros((7, 9), np.uint8)
    mask[1:6, 1:8] = 1
    mask[0, 0] = 255
    image = np.full((7, 9, 3), 100, np.uint8)
    out = Segmentation(mask, NAMES, PALETTE).overlay(image, alpha=0.25)
    np.testing.assert_array_equal(out[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(out[0, 0], image[0, 0])
    np.testing.assert_array_equal(out[2:5, 2:7].reshape(-1, 3), np.tile([125, 100, 75], (15, 1)))
    rim = np.ones((5, 7), bool)
    rim[1:-1, 1:-1] = False
    assert (out[1:6, 1:8][rim] < np.array([125, 100, 75]) * 0.7).all()
    assert (image == 100).all()


def test_rim_of_the_image_is_no_border() -> None:
    out = make([[1, 1], [1, 1]]).overlay(np.zeros((2, 2, 3), np.uint8), alpha=1.0)
    np.testing.assert_array_equal(out.reshape(-1, 3), np.tile(PALETTE[1], (4, 1)))


def test_overlay_refuses_another_image() -> None:
    with pytest.raises(InputError, match=r"The image is 3 x 2 px, the mask 2 x 2 px"):
        make([[1, 1], [1, 1]]).overlay(np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match="alpha is between 0 and 1, got 2"):
        make([[1]]).overlay(np.zeros((1, 1, 3), np.uint8), alpha=2)


def test_saved_mask_is_read_back(tmp_path: Path) -> None:
    result = make([[0, 1, 2], [255, 1, 0]])
    result.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), result.mask)
    with pytest.raises(InputError, match=r"Use a name ending in \.png"):
        result.save(tmp_path / "m.jpg")


def test_outlines_and_run_lengths() -> None:
    result = make([[0, 1, 2], [255, 1, 0]])
    assert [(p.class_id, p.exterior.tolist()) for p in result.polygons()] == [
        (1, [[1, 0], [2, 0], [2, 2], [1, 2]]),
        (2, [[2, 0], [3, 0], [3, 1], [2, 1]]),
    ]
    assert [p.class_id for p in result.polygons(min_area=2)] == [1]
    np.testing.assert_array_equal(decode(result.rle("cow")), result.mask == 1)
    assert result.rle("cow", compressed=False) == {"size": [2, 3], "counts": [2, 2, 2]}
    with pytest.raises(InputError, match=r"Unknown class 'cwo'. Did you mean 'cow'"):
        result.rle("cwo")


@pytest.mark.parametrize(
    ("mask", "palette", "confidence", "words"),
    [
        (np.zeros((2, 2), np.int64), PALETTE, None, "A mask is"),
        (np.zeros((2, 2, 1), np.uint8), PALETTE, None, "A mask is"),
        (np.zeros((2, 2), np.uint8), PALETTE[:2], None, "A palette for 3 classes"),
        (np.zeros((2, 2), np.uint8), PALETTE, np.zeros((2, 3), np.float32), "Confidence has shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    mask: np.ndarray, palette: np.ndarray, confidence: np.ndarray | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Segmentation(mask, NAMES, palette, confidence)
