"""Image and mask files to arrays and back: the one reader of the project, so that training, evaluation and serving
see the same pixels.

Images become ``(H, W, 3)`` uint8 RGB with the EXIF orientation applied; masks stay ``(H, W)`` uint8 class ids.
"""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cilseg.bundle import write_file_atomically
from cilseg.classes import VOID_ID
from cilseg.errors import InputError, NotFoundError

MAX_PIXELS = 178_956_970
"""Largest image that is decoded (Pillow's own hard limit); more is taken for a decompression bomb."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".avif"})
VOID_COLOR = (224, 224, 192)

# Only decoders that work inside this process: Pillow's EPS reader, for one, starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ImageLike: TypeAlias = npt.NDArray[np.generic] | Image.Image | str | Path
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUPPORTED = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000"


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read an image file as ``(H, W, 3)`` uint8 RGB, upright (EXIF orientation applied), alpha dropped.

    Grey, palette, CMYK and 16-bit grey images (scaled to 8 bit) are converted.

    Raises:
        NotFoundError: the file does not exist.
        InputError: a folder, empty, truncated, no image, animated, too large, or pixels that have no 8-bit meaning.
    """
    with _open_file(Path(path), "image") as stream:
        return decode_image(stream, name=str(path))


def decode_image(stream: BinaryIO, *, name: str) -> npt.NDArray[np.uint8]:
    """Decode an open image file or upload as ``(H, W, 3)`` uint8 RGB; ``name`` stands in the messages.

    Raises:
        InputError: see :func:`read_image`.
    """
    image = _open_image(stream, name)
    _load(image, name)
    try:
        return to_rgb(image)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to ``(H, W, 3)`` uint8 RGB, upright, alpha dropped.

    Raises:
        InputError: no pixels, or a pixel format without an 8-bit meaning (floating point, LAB, 32-bit integers).
    """
    if image.width == 0 or image.height == 0:
        raise InputError(f"Image of {image.width} x {image.height} px has no pixels.")
    upright = _upright(image)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        return np.repeat(_from_16_bit(np.asarray(upright))[..., None], 3, axis=2)
    if upright.mode == "La":
        upright = upright.convert("LA")
    elif upright.mode == "RGBa" or (upright.mode == "P" and "transparency" in upright.info):
        upright = upright.convert("RGBA")
    try:
        if upright.mode == "F":
            raise ValueError("floating-point pixels have no fixed range")
        return np.array(upright.convert("RGB"))
    except ValueError as exc:
        raise InputError(
            f"Pixel format {upright.mode!r} cannot be used ({exc}). Save the image as 8-bit RGB or grey."
        ) from exc


def as_rgb_array(image: ImageLike) -> npt.NDArray[np.uint8]:
    """Return an array, Pillow image or image file as ``(H, W, 3)`` uint8 RGB.

    Arrays may be ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)`` (RGB order, alpha dropped), uint8, or uint16
    (scaled from 0..65535). An ``(H, W, 3)`` uint8 array is returned as it is, not copied.

    Raises:
        InputError: another shape, data type or kind of object, or see :func:`read_image`.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise InputError(f"An image is an array, a PIL image or a path, got {type(image).__name__}.")
    shape, dtype = image.shape, image.dtype
    if 0 in shape:
        raise InputError(f"Image array of shape {shape} has no pixels.")
    values = image[..., 0] if image.ndim == 3 and shape[2] == 1 else image
    if dtype not in (np.uint8, np.uint16):
        raise InputError(f"Image array has data type {dtype}, expected uint8 (0-255). Scale and cast it first.")
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        planar = image.ndim == 3 and shape[0] in (1, 3)
        hint = " It looks like (C, H, W): use array.transpose(1, 2, 0)." if planar else ""
        raise InputError(f"Image array has shape {shape}, expected (H, W, 3) RGB or (H, W) grey.{hint}")
    rgb = values if values.ndim == 2 else values[..., :3]
    eight_bit = _from_16_bit(rgb) if dtype == np.uint16 else rgb.astype(np.uint8, copy=False)
    return np.repeat(eight_bit[..., None], 3, axis=2) if eight_bit.ndim == 2 else eight_bit


def read_mask(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a mask file as ``(H, W)`` uint8 ids: the indices of a palette image, the values of a grey one.

    Raises:
        NotFoundError: the file does not exist.
        InputError: empty, corrupt, lossy (JPEG), coloured, or more than 8 bits per pixel.
    """
    with _open_file(Path(path), "mask") as stream:
        image = _open_image(stream, str(path))
        step = _grey_step(image)
        _load(image, str(path))
    if image.format in ("JPEG", "MPO"):
        raise InputError(f"{path}: a JPEG mask has lost its exact ids to compression. Save masks as 8-bit PNG.")
    if image.mode not in ("P", "L", "1"):
        raise InputError(
            f"{path}: a mask holds one class id per pixel (palette or 8-bit grey PNG), got mode {image.mode!r}. "
            "Map its colours to ids first and save it as palette PNG."
        )
    ids = np.array(image, dtype=np.uint8)
    return ids // np.uint8(step)


def write_mask(path: str | Path, mask: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> None:
    """Write ids ``(H, W)`` uint8 as an 8-bit palette PNG, atomically; ``palette`` is ``(n, 3)`` uint8 RGB.

    Entry 255 (void) is light grey unless the palette has 256 entries.

    Raises:
        InputError: wrong shape or data type of either array.
    """
    write_file_atomically(Path(path), encode_mask(mask, palette))


def encode_mask(mask: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Return ids ``(H, W)`` uint8 as the bytes of an 8-bit palette PNG (see :func:`write_mask`).

    Raises:
        InputError: wrong shape or data type of either array.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise InputError(f"A mask is (H, W) uint8 with at least one pixel, got shape {mask.shape} {mask.dtype}.")
    if palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 256 or palette.dtype != np.uint8:
        raise InputError(f"A palette is (n, 3) uint8 with n from 1 to 256, got {palette.shape} {palette.dtype}.")
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[VOID_ID] = VOID_COLOR
    colors[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _open_file(path: Path, kind: str) -> BinaryIO:
    """Open ``path`` for reading, with a message for each way this fails."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such {kind} file. Check the path (it is relative to {Path.cwd()}).") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected one {kind} file.") from None
    except PermissionError:
        raise InputError(f"{path}: not readable by this user. Change its permissions.") from None
    if path.stat().st_size == 0:
        stream.close()
        raise InputError(f"{path}: the {kind} file is empty (0 bytes). Copy it again or leave it out.")
    return stream


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open_image(stream: BinaryIO, name: str) -> Image.Image:
    """Open one still image of acceptable size; its pixels are not decoded yet."""
    try:
        image = Image.open(stream, formats=_known_formats())
        # MPO: a JPEG with further pictures behind it (depth, second lens), as telephones write them.
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InputError(f"{name}: too large ({exc}). Split or shrink it to at most {MAX_PIXELS:,} pixels.") from exc
    except UnidentifiedImageError:
        raise InputError(_unidentified(stream, name)) from None
    except Exception as exc:  # decoders raise almost anything on a damaged header
        raise InputError(f"{name}: damaged image header ({exc}). Copy or export the image again.") from exc
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{name}: too large ({image.width} x {image.height} px). "
            f"Split or shrink it to at most {MAX_PIXELS:,} pixels."
        )
    if frames > 1:
        raise InputError(f"{name}: holds {frames} frames or pages, expected one image. Extract the one you mean.")
    return image


def _unidentified(stream: BinaryIO, name: str) -> str:
    """Say what a file is that no decoder knows, from its first bytes."""
    stream.seek(0)
    head = stream.read(24)
    if head.startswith(_SIGNATURES):
        return f"{name}: damaged image header. Copy or export the image again."
    if head.startswith(_TIFF_SIGNATURES):
        return (
            f"{name}: a TIFF that is damaged or of a kind that cannot be read here (bands, bit depth, packing). Save "
            "it as 8-bit RGB; a GeoTIFF is read by segment_geotiff() and cilseg predict --format geotiff."
        )
    what = "a Git LFS pointer, run: git lfs pull" if head.startswith(b"version https://git-lfs") else repr(head)
    return f"{name}: not an image that can be read (starts with {what}). Supported: {_SUPPORTED}."


def _load(image: Image.Image, name: str) -> None:
    """Decode all pixels; every failure of the decoder becomes an ``InputError``."""
    try:
        image.load()
    except Exception as exc:  # as above: OSError, SyntaxError, struct.error, zlib.error, ...
        raise InputError(f"{name}: truncated or corrupt image ({exc}). Copy or export it again.") from exc


def _grey_step(image: Image.Image) -> int:
    """Return what Pillow multiplies the values of a 2-bit or 4-bit grey PNG with (before loading), else 1."""
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or image.mode != "L" or not tiles:
        return 1
    raw_mode = tiles[0][3][0] if isinstance(tiles[0][3], tuple) else tiles[0][3]
    return {"L;2": 85, "L;4": 17}.get(str(raw_mode), 1)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF beside good pixels: the image is used as it is stored
        return image
    transpose = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _from_16_bit(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale 0..65535 to 0..255, rounding half up; any shape."""
    wide = values.astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > 65535:
        raise InputError(f"Integer pixels from {low} to {high} are outside 0..65535. Save the image with 8 or 16 bits.")
    return ((wide + 128) // 257).astype(np.uint8)
