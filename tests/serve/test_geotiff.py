from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from cilseg.bundle import Preprocessing
from cilseg.errors import InputError, MissingDependencyError, NotFoundError
from cilseg_serve import Segmenter, SlidingWindow, geotiff, segment_geotiff
from tests.serve.tiny_model import CLASSES, expected_mask, make_onnx

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
UTM = CRS.from_epsg(32633)


@pytest.fixture
def window(tmp_path: Path) -> SlidingWindow:
    (tmp_path / "m.onnx").write_bytes(make_onnx(logits=True))
    plain = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=None)
    segmenter = Segmenter.from_onnx(tmp_path / "m.onnx", class_set=CLASSES, preprocessing=plain, threads=1)
    return SlidingWindow(segmenter, tile_px=64, overlap_px=16)


def write_raster(path: Path, bands: npt.NDArray[Any], **profile: Any) -> Path:
    """Write ``(C, H, W)``."""
    count, height, width = bands.shape
    size = {"width": width, "height": height, "count": count, "dtype": bands.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as raster:
        raster.write(bands)
    return path


def noise(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)


def test_mask_lies_where_the_image_lies(window: SlidingWindow, tmp_path: Path) -> None:
    bands = noise(3, 150, 131)
    source = write_raster(
        tmp_path / "a.tif", bands, crs=UTM, transform=TRANSFORM, tiled=True, blockxsize=64, blockysize=64
    )
    seen: list[tuple[int, int]] = []
    result = segment_geotiff(window, source, tmp_path / "mask.tif", on_tile=lambda *step: seen.append(step))
    expected = expected_mask(bands.transpose(1, 2, 0))
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.count, mask.dtypes) == (UTM, TRANSFORM, 1, ("uint8",))
        assert (mask.nodata, mask.block_shapes, mask.tags()["CILSEG_CLASSES"]) == (
            255,
            [(512, 512)],
            "background,red,green,blue",
        )
        np.testing.assert_array_equal(mask.read(1), expected)
        assert [mask.colormap(1)[i][:3] for i in range(4)] == [tuple(rgb) for rgb in CLASSES.palette.tolist()]
    assert result.crs == "EPSG:32633"
    assert (result.width_px, result.height_px) == (131, 150)
    assert result.coverage == {name: (expected == i).mean() for i, name in enumerate(CLASSES.names)}
    assert seen[-1] == (9, 9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "m.onnx", "mask.tif"]


def test_blocks_are_whole_whatever_the_bands(window: SlidingWindow, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(geotiff, "BLOCK_PX", 32)
    bands = noise(3, 201, 50)
    segment_geotiff(window, write_raster(tmp_path / "a.tif", bands), tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as mask:
        np.testing.assert_array_equal(mask.read(1), expected_mask(bands.transpose(1, 2, 0)))


def test_control_points_16_bit_and_grey(window: SlidingWindow, tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 40), (30, 0), (30, 40))]
    grey = noise(1, 30, 40)
    source = write_raster(tmp_path / "a.tif", grey.astype(np.uint16) * 257, gcps=points, crs=CRS.from_epsg(4326))
    segment_geotiff(window, source, tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert [(p.row, p.col, p.x, p.y) for p in mask.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert mask.gcps[1] == CRS.from_epsg(4326)
        np.testing.assert_array_equal(mask.read(1), expected_mask(np.repeat(grey.transpose(1, 2, 0), 3, axis=2)))


def test_no_data_becomes_void(window: SlidingWindow, tmp_path: Path) -> None:
    bands = noise(3, 70, 80) // 2 + 100
    bands[:, 10:40, 20:50] = 0
    source = write_raster(tmp_path / "a.tif", bands, nodata=0)
    result = segment_geotiff(window, source, tmp_path / "mask.tif")
    expected = expected_mask(bands.transpose(1, 2, 0))
    expected[10:40, 20:50] = 255
    with rasterio.open(tmp_path / "mask.tif") as mask:
        np.testing.assert_array_equal(mask.read(1), expected)
    assert result.crs is None
    assert sum(result.coverage.values()) == pytest.approx(1 - 900 / 5600)


def test_rasters_that_cannot_be_used_are_refused(window: SlidingWindow, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "a.tif", noise(3, 64, 64).astype(np.float32))
    with pytest.raises(InputError, match=r"3 band\(s\) of float32, expected uint8 or uint16.*gdal_translate"):
        segment_geotiff(window, source, tmp_path / "mask.tif")
    with pytest.raises(NotFoundError, match="no such image file"):
        segment_geotiff(window, tmp_path / "none.tif", tmp_path / "mask.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(InputError, match="not a raster that GDAL can read"):
        segment_geotiff(window, tmp_path / "text.tif", tmp_path / "mask.tif")
    good = write_raster(tmp_path / "good.tif", noise(3, 64, 64))
    before = good.read_bytes()
    with pytest.raises(InputError, match="is the image itself"):
        segment_geotiff(window, good, good)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(before[:4000])
    with pytest.raises(InputError, match=r"truncated or corrupt|not a raster"):
        segment_geotiff(window, cut, tmp_path / "mask.tif")
    assert good.read_bytes() == before
    assert not (tmp_path / "mask.tif").exists()
    assert not list(tmp_path.glob(".*"))


def test_missing_rasterio_names_the_extra(window: SlidingWindow, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cilseg\[geo\]'"):
        segment_geotiff(window, tmp_path / "a.tif", tmp_path / "mask.tif")
