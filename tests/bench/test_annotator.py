"""The simulated annotator points into objects and draws inside them."""

from __future__ import annotations

import numpy as np
import pytest

from cilseg.bench.annotator import MIN_PIXELS, points_from_mask, scribbles_from_mask
from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import open_source


@pytest.fixture
def mask():
    """Two separate objects of class 1, one of class 2 with a hole, one of class 3, crumbs, and a void frame."""
    drawn = np.zeros((60, 80), dtype=np.uint8)
    drawn[5:20, 5:20] = 1
    drawn[30:50, 10:22] = 1
    drawn[5:35, 40:70] = 2
    drawn[12:28, 48:62] = 0
    drawn[40:55, 40:70] = 3
    drawn[55:57, 2:6] = 1  # 8 pixels
    drawn[:, -2:] = VOID_ID
    return drawn


def test_one_point_in_each_connected_object(mask):
    points = points_from_mask(mask, [1, 2])
    assert [class_id for _, _, class_id in points] == [1, 1, 2]
    assert all(mask[y, x] == class_id for x, y, class_id in points)
    boxes = [(5, 5, 20, 20), (10, 30, 22, 50)]
    for (x, y, _), (left, top, right, bottom) in zip(points, boxes, strict=False):
        assert left + 3 < x < right - 4  # far from the border
        assert top + 3 < y < bottom - 4


def test_crumbs_and_classes_that_were_not_asked_for_are_passed_over(mask):
    assert (mask[55:57, 2:6] == 1).sum() < MIN_PIXELS
    assert not points_from_mask(mask, [])
    assert len(points_from_mask(mask, [3])) == 1


def test_an_object_that_fills_the_image():
    ((x, y, class_id),) = points_from_mask(np.full((20, 30), 4, np.uint8), [4])
    assert (0 <= x < 30, 0 <= y < 20, class_id) == (True, True, 4)


def test_strokes_stay_inside_their_objects(mask):
    drawn = scribbles_from_mask(mask, [1, 2])
    assert drawn.shape == mask.shape
    assert set(drawn.flat) == {0, 1, 2, UNLABELLED_ID}
    on = drawn != UNLABELLED_ID
    assert (drawn[on] == mask[on]).all()
    for class_id, part in ((1, mask[5:20, 5:20]), (1, mask[30:50, 10:22]), (2, mask[5:35, 40:70])):
        assert (part == class_id).any()
    assert (drawn[5:20, 5:20] == 1).any()
    assert (drawn[30:50, 10:22] == 1).any()
    assert (drawn == 2).any()
    assert on.mean() < 0.2


def test_one_stroke_through_the_background(mask):
    drawn = scribbles_from_mask(mask, [1])
    assert (drawn == 0).any()
    assert not (drawn[:, -2:] == 0).any()  # void is not background
    assert not (drawn[12:28, 48:62] == 0).any()  # the larger part of the background alone


def test_without_background_there_is_no_stroke_for_it():
    drawn = scribbles_from_mask(np.full((20, 30), 1, np.uint8), [1])
    assert set(drawn.flat) == {1, UNLABELLED_ID}


def test_on_scenes(tmp_path):
    generate_scenes(tmp_path / "s", train=4, val=0, size_px=64, seed=5, classes=SCENE_CLASSES[:3])
    source = open_source(tmp_path / "s", split="train")
    for index in range(len(source)):
        mask = source.mask(index)
        ids = sorted(set(mask.flat) - {0, VOID_ID})
        points = points_from_mask(mask, ids)
        assert all(mask[y, x] == class_id for x, y, class_id in points)
        large = {k for k in ids if (mask == k).sum() >= 4 * MIN_PIXELS}
        assert large <= {class_id for _, _, class_id in points}
        drawn = scribbles_from_mask(mask, ids)
        on = drawn != UNLABELLED_ID
        assert (drawn[on] == mask[on]).all()
