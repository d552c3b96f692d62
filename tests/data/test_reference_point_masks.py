"""Point masks against the published loader's arrays."""

from __future__ import annotations

import numpy as np
import pytest

from cilseg.classes import UNLABELLED_ID
from cilseg.data.annotations import paint_points
from cilseg.errors import InputError


@pytest.mark.parametrize(("key", "radius"), [("mask_single", 0), ("mask_square", 2)])
def test_painting(reference, key, radius):
    a = reference("pixel_point_masks")
    size = {"height": int(a["height"]), "width": int(a["width"])}
    np.testing.assert_array_equal(paint_points(a["points"].tolist(), radius=radius, fill=0, **size), a[key])


def test_unlabelled_is_neither_background_nor_void():
    mask = paint_points([(1, 0, 0)], height=1, width=3)
    assert mask.tolist() == [[UNLABELLED_ID, 0, UNLABELLED_ID]]


def test_every_wrong_point_is_named():
    with pytest.raises(InputError, match=r"(?s)\(3, 0\).*class 254"):
        paint_points([(3, 0, 1), (0, 0, 254)], height=1, width=3)
