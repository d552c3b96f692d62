"""GeoTIFF in, GeoTIFF out, through rasterio (extra ``geo``): read window by window, written block by block.

Coordinate reference system and transform are kept, or ground control points where the file has those instead. The
whole image is never in memory.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cilseg.classes import VOID_ID
from cilseg.errors import InputError, MissingDependencyError, NotFoundError
from cilseg_serve.images import VOID_COLOR, as_rgb_array
from cilseg_serve.sliding_window import OnTile, SlidingWindow

if TYPE_CHECKING:
    from cilseg.classes import ClassSet

BLOCK_PX = 512
"""Side of the blocks that are written."""
_CACHE_MIB = 128


@dataclass(frozen=True)
class GeoResult:
    """What was written: size in pixels, the reference system (``None``: there was none), share of pixels per class."""

    path: Path
    width_px: int
    height_px: int
    crs: str | None
    coverage: dict[str, float]


def segment_geotiff(
    window: SlidingWindow, source: str | Path, target: str | Path, *, on_tile: OnTile | None = None
) -> GeoResult:
    """Segment a raster of any size into a tiled, compressed GeoTIFF of class ids with a colour table.

    Bands 1 to 3 are red, green and blue; a raster with one or two bands is grey. uint8, or uint16 scaled from 0..65535.
    Where the source has no data the mask is 255 (void), which is the mask's no-data value.

    Memory: that of :class:`~cilseg_serve.SlidingWindow`, ``BLOCK_PX`` rows of the mask, and 128 MiB of GDAL's cache.

    Args:
        source: a path, or whatever GDAL opens (``/vsicurl/...``, ``s3://...``).
        target: the file to write; it appears when it is whole.

    Raises:
        NotFoundError: no such file.
        InputError: no raster, or bands that cannot be used; target and source are one file.
        MissingDependencyError: rasterio is not installed.
        OSError: the target cannot be written.
    """
    rasterio = _rasterio()
    path = Path(target)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MIB), _opened(rasterio, str(source)) as raster:
        _check(raster, str(source))
        if Path(source).exists() and path.exists() and path.samefile(source):
            raise InputError(f"{path} is the image itself. Choose another name for the mask.")
        classes = window.segmenter.class_set
        counts = np.zeros(256, dtype=np.int64)
        with _replaced(path) as part, _open(rasterio, part, "w", **_profile(raster)) as written:
            _describe(written, raster, classes)
            has_void = _has_no_data(raster)
            for top, rows in _blocks(_bands(window, raster, on_tile), raster.width):
                place = rasterio.windows.Window(0, top, raster.width, len(rows))
                if has_void:
                    rows[raster.dataset_mask(window=place) == 0] = VOID_ID
                counts += np.bincount(rows.ravel(), minlength=256)
                written.write(rows, 1, window=place)
        size = raster.width * raster.height
        coverage = {name: float(counts[index] / size) for index, name in enumerate(classes.names)}
        crs = None if raster.crs is None else raster.crs.to_string()
        return GeoResult(path, raster.width, raster.height, crs, coverage)


def _rasterio() -> Any:
    try:
        import rasterio
        import rasterio.windows
    except ImportError as exc:
        raise MissingDependencyError(
            f"GeoTIFF needs rasterio ({exc}). Install it with: pip install 'cilseg[geo]'"
        ) from exc
    return rasterio


def _opened(rasterio: Any, source: str) -> Any:
    if "://" not in source and not source.startswith("/vsi") and not Path(source).exists():
        raise NotFoundError(f"{source}: no such image file. Check the path (it is relative to {Path.cwd()}).")
    try:
        return _open(rasterio, source)
    except rasterio.errors.RasterioError as exc:
        raise InputError(f"{source}: not a raster that GDAL can read ({exc}). Copy or export the image again.") from exc


def _open(rasterio: Any, *arguments: Any, **options: Any) -> Any:
    """Open without the warning that a plain image has no place on earth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(*arguments, **options)


def _check(raster: Any, source: str) -> None:
    kinds = sorted(set(raster.dtypes[: min(3, raster.count)]))
    if raster.count < 1 or kinds not in (["uint8"], ["uint16"]):
        raise InputError(
            f"{source} has {raster.count} band(s) of {', '.join(kinds) or 'nothing'}, expected uint8 or uint16. "
            "Convert it with: gdal_translate -ot Byte -scale IN OUT"
        )


def _bands(window: SlidingWindow, raster: Any, on_tile: OnTile | None) -> Iterator[npt.NDArray[np.uint8]]:
    indexes = [1, 2, 3] if raster.count >= 3 else [1]

    def read(rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        try:
            values = raster.read(indexes, window=((rows.start, rows.stop), (columns.start, columns.stop)))
        except OSError as exc:  # rasterio's own error is one
            raise InputError(f"{raster.name}: truncated or corrupt ({exc}). Copy or export it again.") from exc
        return as_rgb_array(values.transpose(1, 2, 0))

    for band in window.bands(read, raster.height, raster.width, on_tile=on_tile):
        yield band.mask


def _blocks(bands: Iterator[npt.NDArray[np.uint8]], width: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Gather rows into whole blocks, so that none is compressed twice; give (first row, rows)."""
    waiting: list[npt.NDArray[np.uint8]] = []
    top = held = 0
    for band in bands:
        waiting.append(band)
        held += len(band)
        if held >= BLOCK_PX:
            rows = np.concatenate(waiting)
            whole = held - held % BLOCK_PX
            yield top, rows[:whole]
            waiting, top, held = [rows[whole:]], top + whole, held - whole
    if held:
        yield top, np.concatenate(waiting).reshape(held, width)


def _profile(raster: Any) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": raster.width,
        "height": raster.height,
        "count": 1,
        "dtype": "uint8",
        "nodata": VOID_ID,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "BIGTIFF": "IF_SAFER",
    }


def _describe(written: Any, raster: Any, classes: ClassSet) -> None:
    points, points_crs = raster.gcps
    if points:
        written.gcps = (points, points_crs)
    else:
        if raster.crs is not None:
            written.crs = raster.crs
        if not raster.transform.is_identity:
            written.transform = raster.transform
    colors = {index: (*map(int, rgb), 255) for index, rgb in enumerate(classes.palette)}
    written.write_colormap(1, {VOID_ID: (*VOID_COLOR, 0), **colors})
    written.update_tags(CILSEG_CLASSES=",".join(classes.names))


def _has_no_data(raster: Any) -> bool:
    """Whether some pixels may be invalid: a no-data value, a mask, or an alpha band."""
    return any("all_valid" not in {flag.name for flag in flags} for flags in raster.mask_flag_enums)


@contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """Give a name beside ``path`` to write to; it becomes ``path`` at the end, or goes away."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tif")
    os.close(handle)
    try:
        yield part
        Path(part).chmod(0o666 & ~_umask())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
