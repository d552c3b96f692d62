from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.features import rasterize

from cilseg.errors import InputError
from cilseg_serve.polygons import Polygon, to_geojson, trace

masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255])
)
binary = arrays.arrays(np.uint8, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.integers(0, 1))


def filled(polygon: Polygon, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels whose centre is inside: parity of the vertical edges to the left."""
    toggles = np.zeros((shape[0], shape[1] + 1), np.int64)
    for ring in (polygon.exterior, *polygon.holes):
        for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            assert (x0 == x1) != (y0 == y1), "an edge runs along the grid and has a length"
            if x0 == x1:
                toggles[min(y0, y1) : max(y0, y1), x0] ^= 1
    inside: npt.NDArray[np.bool_] = (np.cumsum(toggles, axis=1) & 1).astype(bool)[:, :-1]
    return inside


def regions(inside: npt.NDArray[np.bool_]) -> int:
    """Count 4-connected regions by flooding."""
    left, count = {tuple(p) for p in np.argwhere(inside).tolist()}, 0
    while left:
        front, count = [left.pop()], count + 1
        while front:
            y, x = front.pop()
            for step in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if step in left:
                    left.remove(step)
                    front.append(step)
    return count


@settings(max_examples=80, deadline=None)
@given(mask=masks | binary)
def test_filled_polygons_give_the_mask_back(mask: npt.NDArray[np.uint8]) -> None:
    polygons = trace(mask)
    back = np.zeros_like(mask)
    for polygon in polygons:
        inside = filled(polygon, mask.shape)
        assert not back[inside].any(), "polygons do not overlap"
        assert inside.sum() == polygon.area
        back[inside] = polygon.class_id
        for ring in (polygon.exterior, *polygon.holes):
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring), "a ring is simple"
    np.testing.assert_array_equal(back, np.where(mask == 255, 0, mask))
    assert len(polygons) == sum(regions(mask == i) for i in (1, 2))


@settings(max_examples=30, deadline=None)
@given(mask=masks | binary)
def test_gdal_fills_them_the_same_way(mask: npt.NDArray[np.uint8]) -> None:
    shapes = [
        (f["geometry"], f["properties"]["class_id"]) for f in to_geojson(trace(mask), ("b", "cow", "pig"))["features"]
    ]
    back = rasterize(shapes, out_shape=mask.shape, dtype="uint8") if shapes else np.zeros_like(mask)
    np.testing.assert_array_equal(back, np.where(mask == 255, 0, mask))


def test_island_in_a_lake_in_an_island() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[1:8, 1:8], mask[2:7, 2:7], mask[3:6, 3:6], mask[4, 4] = 1, 0, 1, 2
    outer, inner, dot = trace(mask)
    assert [p.area for p in (outer, inner, dot)] == [24, 8, 1]
    assert (outer.class_id, dot.class_id) == (1, 2)
    assert outer.exterior.tolist() == [[1, 1], [8, 1], [8, 8], [1, 8]]
    assert [hole.tolist() for hole in outer.holes] == [[[2, 2], [2, 7], [7, 7], [7, 2]]]
    assert [hole.tolist() for hole in inner.holes] == [[[4, 4], [4, 5], [5, 5], [5, 4]]]


def test_pixels_that_touch_by_a_corner_are_two_regions_and_holes_stay_closed() -> None:
    assert [p.area for p in trace(np.array([[1, 0], [0, 1]], np.uint8))] == [1, 1]
    [ring] = trace(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8))
    assert (ring.area, len(ring.holes)) == (7, 1)


def test_classes_and_small_regions_can_be_chosen() -> None:
    mask = np.array([[1, 0, 2, 2], [0, 0, 2, 2]], np.uint8)
    assert [p.class_id for p in trace(mask)] == [1, 2]
    assert [p.class_id for p in trace(mask, min_area=2)] == [2]
    assert [(p.class_id, p.area) for p in trace(mask, class_ids=[0])] == [(0, 3)]
    assert trace(mask, class_ids=[7]) == []
    assert trace(np.zeros((3, 3), np.uint8)) == []
    with pytest.raises(InputError, match=r"A mask is \(H, W\) uint8"):
        trace(mask.astype(np.int64))


def test_geojson_names_the_classes_and_closes_the_rings() -> None:
    collection = to_geojson(trace(np.array([[0, 1]], np.uint8)), ("background", "cow"))
    assert json.loads(json.dumps(collection)) == {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"class": "cow", "class_id": 1, "area": 1},
                "geometry": {"type": "Polygon", "coordinates": [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]]},
            }
        ],
    }
