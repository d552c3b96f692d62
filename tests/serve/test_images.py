from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.errors import InputError, NotFoundError
from cilseg_serve import images
from cilseg_serve.images import as_rgb_array, read_image, read_mask, to_rgb, write_mask

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def grey_png(depth: int, width: int, row: bytes, *, height: int = 1, color: int = 0) -> bytes:
    """A one-row PNG of 1, 2, 4, 8 or 16 bits, grey unless ``color`` says otherwise, by the letter of the format."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), RGB)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB, np.zeros((5, 7), np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(RGB[..., :1], 3, axis=2))


def test_palette_with_transparency_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(grey_png(16, 4, struct.pack(">4H", 0, 257, 257 * 128, 65535)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 1], [0, 1, 128, 255])


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    flat = np.broadcast_to(np.array([220, 30, 40], np.uint8), (16, 16, 3)).copy()
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - flat).max() <= 6


def test_16_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    data = grey_png(16, 2, struct.pack(">6H", 0, 257, 65535, 0x1234, 0x80FF, 0xFF00), color=2)
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[0, 1, 255], [0x12, 0x80, 0xFF]])


def test_grey_with_alpha_and_cmyk_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB[..., 0], RGB[..., 1]]), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(RGB[..., :1], 3, axis=2))
    Image.fromarray(np.dstack([255 - RGB, np.zeros((5, 7), np.uint8)]), "CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_one_pixel_and_a_very_wide_image(tmp_path: Path) -> None:
    for width in (1, 30_000):
        (tmp_path / "a.png").write_bytes(grey_png(8, width, bytes([9] * width)))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((1, width, 3), 9))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # How a camera stores an upright scene under each value (EXIF 2.3, 4.6.4): the inverse of what a viewer does.
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def _jpeg(path: Path) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


def _bad_file(folder: Path, kind: str) -> Path:
    path = folder / "bad.png"
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 99)]
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello, I am no picture")
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "truncated jpeg":
        data = _jpeg(folder / "whole.jpg")
        path.write_bytes(data[: len(data) // 2])
    elif kind == "truncated png":
        Image.fromarray(noise).save(folder / "whole.png")
        path.write_bytes((folder / "whole.png").read_bytes()[:4000])
    elif kind == "header only":
        path.write_bytes(_jpeg(folder / "whole.jpg")[:30])
    elif kind == "signature only":
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    elif kind == "animated gif":
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    elif kind in ("webp", "apng"):
        frames[0].save(path, format=kind.upper().lstrip("A"), save_all=True, append_images=frames[1:])
    elif kind == "bigtiff":
        path.write_bytes(b"II+\0\x08\0\0\0" + bytes(40))
    elif kind == "wide":
        path.write_bytes(grey_png(8, 30_000, b"", height=30_000))
    elif kind == "float tiff":
        Image.fromarray(np.ones((4, 4), np.float32)).save(path, format="TIFF")
    elif kind == "huge":
        path.write_bytes(grey_png(8, 60_000, b"", height=60_000))
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["no such image file", "Check the path"]),
        ("empty", ["is empty (0 bytes)", "Copy it again"]),
        ("folder", ["is a folder", "expected one image file"]),
        ("text", ["not an image that can be read", "hello, I am no picture", "Supported: JPEG, PNG"]),
        ("lfs", ["git lfs pull"]),
        ("truncated jpeg", ["truncated or corrupt image", "Copy or export it again"]),
        ("truncated png", ["truncated or corrupt image", "Copy or export it again"]),
        ("header only", ["damaged image header", "Copy or export the image again"]),
        ("signature only", ["damaged image header", "Copy or export the image again"]),
        ("animated gif", ["holds 2 frames", "Extract the one you mean"]),
        ("webp", ["holds 2 frames", "Extract the one you mean"]),
        ("apng", ["holds 2 frames", "Extract the one you mean"]),
        ("bigtiff", ["a TIFF that is damaged or of a kind", "--format geotiff"]),
        ("wide", ["too large", "Split or shrink it to at most"]),
        ("float tiff", ["Pixel format 'F' cannot be used", "Save the image as 8-bit"]),
        ("huge", ["too large", "Split or shrink it to at most 178,956,970 pixels"]),
    ],
)
def test_bad_files_are_named_with_advice(tmp_path: Path, kind: str, words: list[str]) -> None:
    path = _bad_file(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read_image(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert isinstance(caught.value, NotFoundError) == (kind == "missing")


def test_size_limit_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(InputError, match=r"too large \(7 x 5 px\)"):
        read_image(tmp_path / "a.png")


def test_arrays_pass_through_or_are_converted() -> None:
    assert as_rgb_array(RGB) is RGB or np.shares_memory(as_rgb_array(RGB), RGB)
    grey = RGB[..., 0]
    np.testing.assert_array_equal(as_rgb_array(grey), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(as_rgb_array(grey[..., None]), as_rgb_array(grey))
    np.testing.assert_array_equal(as_rgb_array(np.dstack([RGB, grey])), RGB)
    np.testing.assert_array_equal(as_rgb_array(grey.astype(np.uint16) * 257), as_rgb_array(grey))
    np.testing.assert_array_equal(as_rgb_array(grey[..., None].astype(np.uint16) * 257), as_rgb_array(grey))
    wide = RGB.astype(np.uint16) * 257 + 100
    np.testing.assert_array_equal(as_rgb_array(wide), RGB)
    np.testing.assert_array_equal(as_rgb_array(np.dstack([wide, wide[..., 0]])), RGB)
    np.testing.assert_array_equal(as_rgb_array(Image.fromarray(RGB)), RGB)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((20, 30), bool), "data type bool, expected uint8"),
        (np.zeros((20, 30, 2), np.uint16), "expected (H, W, 3)"),
        (np.zeros((20, 30, 3), np.float32), "data type float32, expected uint8"),
        (np.zeros((0, 30, 3), np.uint8), "has no pixels"),
        (np.zeros((2, 20, 30, 3), np.uint8), "expected (H, W, 3)"),
        ([[1, 2], [3, 4]], "got list"),
    ],
)
def test_bad_arrays_are_refused(value: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        as_rgb_array(value)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_32_bit_pixels_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"from 0 to 70000 are outside"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_mask_survives_writing_with_any_palette(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.array([[0, 0, 0], [200, 10, 10], [9, 8, 7]], np.uint8)
    write_mask(tmp_path / "m.png", mask, palette)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        colours = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(colours[0, :3], palette)
    np.testing.assert_array_equal(colours[15, 15], images.VOID_COLOR)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize(("depth", "row"), [(1, 0b01010000), (2, 0b00011011), (4, 0x01), (8, 0)])
def test_grey_masks_of_every_depth_keep_their_ids(tmp_path: Path, depth: int, row: int) -> None:
    """Pillow stretches 2-bit and 4-bit grey to 0..255; ids must not be."""
    body = {1: bytes([row]), 2: bytes([row]), 4: bytes([0x01, 0x23]), 8: bytes([0, 1, 2, 3])}[depth]
    (tmp_path / "m.png").write_bytes(grey_png(depth, 4, body))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png")[0], [0, 1, 0, 1] if depth == 1 else [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("RGB", "png", "Map its colours to ids first"),
        ("LA", "png", "got mode 'LA'"),
        ("I;16", "png", "got mode 'I;16'"),
        ("L", "jpg", "a JPEG mask has lost its exact ids"),
    ],
)
def test_files_that_are_no_masks_are_refused(tmp_path: Path, mode: str, suffix: str, words: str) -> None:
    path = tmp_path / f"m.{suffix}"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(InputError) as caught:
        read_mask(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_masks_are_not_written(tmp_path: Path) -> None:
    palette = np.zeros((2, 3), np.uint8)
    with pytest.raises(InputError, match="A mask is"):
        write_mask(tmp_path / "m.png", np.zeros((2, 2), np.int64), palette)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="A palette is"):
        write_mask(tmp_path / "m.png", np.zeros((2, 2), np.uint8), np.zeros((300, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP"])
def test_damaged_bytes_never_raise_anything_but_input_errors(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "whole", format=kind)
    whole = (tmp_path / "whole").read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 120), rng.integers(1, 6)):
            data[position] = rng.integers(0, 256)
        (tmp_path / "bad").write_bytes(data[: rng.integers(1, len(data) + 1)])
        for read in (read_image, read_mask):
            with contextlib.suppress(InputError):
                read(tmp_path / "bad")
                refused -= 1
            refused += 1
    assert refused > 40
