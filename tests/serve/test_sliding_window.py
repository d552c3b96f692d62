from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cilseg.bundle import Preprocessing
from cilseg.errors import ArtifactError, InputError
from cilseg_serve import Segmenter, SlidingWindow
from tests.serve.strided_model import REACH_PX, STRIDE, make_strided_onnx
from tests.serve.tiny_model import CLASSES, expected_mask, make_onnx

Image8 = npt.NDArray[np.uint8]
OpenModel = Callable[[bytes], Segmenter]


@pytest.fixture
def open_model(tmp_path: Path) -> OpenModel:
    """Return a function that starts a segmenter of a model that resizes nothing."""

    def build(model: bytes) -> Segmenter:
        (tmp_path / "m.onnx").write_bytes(model)
        preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=None)
        return Segmenter.from_onnx(tmp_path / "m.onnx", class_set=CLASSES, preprocessing=preprocessing, threads=1)

    return build


def blotches(height: int, width: int, seed: int = 0) -> Image8:
    """A random image with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 12 + 1, width // 12 + 1, 3)).repeat(12, axis=0).repeat(12, axis=1)
    return (coarse[:height, :width] + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize(("logits", "confidence"), [(True, False), (False, True), (False, False)])
def test_pointwise_model_gives_the_answer_of_the_whole_image(
    open_model: OpenModel, logits: bool, confidence: bool
) -> None:
    segmenter = open_model(make_onnx(logits=logits, confidence=confidence))

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.nested_given])
    @given(height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(1, 40), part=st.floats(0, 0.5))
    def check(height: int, width: int, tile: int, part: float) -> None:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        window = SlidingWindow(segmenter, tile_px=tile, overlap_px=int(tile * part))
        result = window.segment(image, confidence=logits or confidence)
        np.testing.assert_array_equal(result.mask, expected_mask(image))
        if confidence:
            np.testing.assert_array_equal(result.confidence, segmenter.segment(image, confidence=True).confidence)

    check()


def test_reach_within_a_quarter_of_the_overlap_gives_the_answer_of_the_whole_image(open_model: OpenModel) -> None:
    segmenter = open_model(make_strided_onnx(confidence=True))
    image = blotches(331, 402)
    whole = segmenter.segment(image, confidence=True)
    assert len(whole.present) == 3
    assert whole.confidence is not None
    window = SlidingWindow(segmenter, tile_px=128, overlap_px=4 * REACH_PX)
    tiled = window.segment(image, confidence=True)
    assert (tiled.mask == whole.mask).mean() >= 0.9999
    assert tiled.confidence is not None
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=2e-5)
    # The test can fail: without overlap the borders of the tiles show.
    assert (SlidingWindow(segmenter, tile_px=128, overlap_px=0).segment(image).mask == whole.mask).mean() < 0.999


def test_blending_smooths_what_tiles_see_differently(open_model: OpenModel) -> None:
    """A pooled branch sees one tile, so that neighbours disagree; blended, the answer has no step where they meet."""
    segmenter = open_model(make_strided_onnx(pooled=True, confidence=True))
    across = 100 + np.linspace(0, 60, 512)[None] + np.zeros((512, 1))
    image = np.stack([across, 255 - across, across], axis=2).astype(np.uint8)

    def steepest(overlap_px: int) -> float:
        result = SlidingWindow(segmenter, tile_px=128, overlap_px=overlap_px).segment(image, confidence=True)
        assert result.confidence is not None
        return float(np.abs(np.diff(result.confidence, axis=1))[40:60, 40:-40].mean(axis=0).max())

    assert steepest(64) < steepest(0) / 3


def test_what_is_blended_without_logits(open_model: OpenModel) -> None:
    segmenter = open_model(make_strided_onnx(logits=False))
    image = blotches(150, 210)
    window = SlidingWindow(segmenter, tile_px=128, overlap_px=4 * REACH_PX)
    assert not window.blends_logits
    np.testing.assert_array_equal(window.segment(image).mask, segmenter.segment(image).mask)
    with pytest.raises(InputError, match=r"without confidence and logits.*--logits"):
        window.segment(image, confidence=True)


def test_bands_cover_the_image_in_order_and_progress_counts_tiles(open_model: OpenModel) -> None:
    segmenter = open_model(make_strided_onnx())
    image = blotches(300, 90)
    window = SlidingWindow(segmenter, tile_px=64, overlap_px=16)
    seen: list[tuple[int, int]] = []
    bottom = 0
    asked: list[int] = []

    def read(rows: slice, columns: slice) -> Image8:
        asked.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return image[rows, columns]

    for band in window.bands(read, 300, 90, on_tile=lambda done, total: seen.append((done, total))):
        assert band.top == bottom
        assert band.mask.shape[1] == 90
        bottom += len(band.mask)
    assert bottom == 300
    assert seen == [(i + 1, 12) for i in range(12)]
    assert max(asked) <= 64 * 64


def test_tiles_that_do_not_fit_the_stride_are_refused(open_model: OpenModel) -> None:
    segmenter = open_model(make_strided_onnx())
    with pytest.raises(InputError, match=f"answers every {STRIDE} px.*multiples of 64"):
        SlidingWindow(segmenter, tile_px=66, overlap_px=16)
    with pytest.raises(InputError, match="more than half of a tile"):
        SlidingWindow(segmenter, tile_px=64, overlap_px=40)
    segmenter.class_set = segmenter.class_set.extend(["more"], step=1)
    with pytest.raises(ArtifactError, match=r"expected \(1, 5, h, h\)"):
        SlidingWindow(segmenter)


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """A real process: peak memory on 6 and on 30 megapixels, read tile by tile."""
    (tmp_path / "m.onnx").write_bytes(make_strided_onnx())
    classes = [dict(row) for row in CLASSES.to_json()]
    program = f"""
        import json, sys
        from pathlib import Path
        import numpy as np
        from cilseg.bundle import Preprocessing
        from cilseg.classes import ClassSet
        from cilseg_serve import Segmenter, SlidingWindow
        classes = ClassSet.from_json(json.loads({json.dumps(classes)!r}))
        plain = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
        segmenter = Segmenter.from_onnx({str(tmp_path / "m.onnx")!r}, class_set=classes, preprocessing=plain, threads=1,
                                           backend="onnxruntime")
        tile = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        read = lambda rows, columns: tile[: rows.stop - rows.start, : columns.stop - columns.start]
        window = SlidingWindow(segmenter, tile_px=512, overlap_px=64)
        for height in (2_000, 10_000):
            rows = sum(len(band.mask) for band in window.bands(read, height, 3_000))
            assert rows == height, rows
            status = Path("/proc/self/status").read_text()  # ru_maxrss survives exec: it would be the parent's
            print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, env=environment
    )
    small_kib, large_kib = map(int, done.stdout.split())
    # The mask alone of what came on top is 24 MB; the image would be 72 MB.
    assert large_kib - small_kib < 12_000
    assert large_kib < 400_000  # interpreter, numpy and runtime among it
