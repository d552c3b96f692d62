"""Where a batch run reads from, what it writes, and how it goes on after it was killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from pycocotools.coco import COCO

from cilseg.errors import InputError, MissingDependencyError
from cilseg_serve import Segmenter, SlidingWindow, predict_paths, read_mask
from cilseg_serve.pipeline import LocalEngine
from cilseg_serve.predict import Shard
from cilseg_serve.ray_engine import RayEngine
from cilseg_serve.rle import decode
from tests.serve.conftest import BundleMaker
from tests.serve.tiny_model import expected_mask

Image8 = npt.NDArray[np.uint8]


pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools.*"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


@pytest.fixture
def segmenter(make_bundle: BundleMaker) -> Segmenter:
    return Segmenter(make_bundle(logits=True), threads=1)


def photo(index: int) -> Image8:
    return np.random.default_rng(index).integers(0, 256, (9 + index % 3, 11, 3), dtype=np.uint8)


def png(image: Image8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder with seven images and a broken one between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(7):
        (folder / f"{index}.png").write_bytes(png(photo(index)))
    (folder / "3-broken.png").write_bytes(b"\x89PNG and no more")
    return folder


def names(result: Any) -> list[str]:
    return [Path(image.mask).stem for image in result.images]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_archives_give_their_images(segmenter: Segmenter, tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"set.tar{mode[1:].replace(':', '.')}"
    with tarfile.open(path, mode) as tar:
        for name, data in [
            ("farm/a.png", png(photo(0))),
            ("b.png", png(photo(1))),
            ("notes.txt", b"no image"),
            ("cut.png", png(photo(2))[:40]),
            ("._b.png", b"resource fork"),
            ("c.png", png(photo(3))),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    result = predict_paths(segmenter, [path], tmp_path / "out", overlays=False)
    assert [i.file for i in result.images] == [f"{path}/farm/a.png", f"{path}/b.png", f"{path}/c.png"]
    for index, name in ((0, "farm/a"), (1, "b"), (3, "c")):
        np.testing.assert_array_equal(read_mask(tmp_path / f"out/masks/{name}.png"), expected_mask(photo(index)))
    [(file, reason)] = result.failures
    assert file == f"{path}/cut.png"
    assert "Copy or export" in reason


def test_hostile_and_damaged_archives_are_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "up.tar", "w") as tar:
        info = tarfile.TarInfo("../../a.png")
        tar.addfile(info, io.BytesIO())
    (tmp_path / "no.tar").write_bytes(b"no archive" * 200)
    (tmp_path / "cut.tgz").write_bytes(b"\x1f\x8b\x08\0\0")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    inputs = [tmp_path / name for name in ("up.tar", "no.tar", "cut.tgz", "empty.tar")]
    with pytest.raises(InputError) as caught:
        predict_paths(segmenter, inputs, tmp_path / "out")
    for words in (
        "4 faults",
        "points outside the archive",
        "no.tar: damaged or no tar",
        "cut.tgz: damaged",
        "no images",
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_lists_name_files_beside_them_and_urls(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/listed/z.png", png(photo(5)))
    text = f"id,file_name\n1, photos/0.png\n2,{photos / '1.png'}\n3,memory://listed/z.png\n4,photos/gone.png\n5,\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    result = predict_paths(segmenter, [tmp_path / "list.csv"], tmp_path / "out", overlays=False)
    assert [str(i.mask) for i in result.images] == ["masks/photos/0.png", "masks/1.png", "masks/z.png"]
    np.testing.assert_array_equal(read_mask(tmp_path / "out/masks/z.png"), expected_mask(photo(5)))
    assert "gone.png: no such image file" in result.failures[0][1]
    (tmp_path / "odd.csv").write_text("picture\na.png\n")
    with pytest.raises(InputError, match=r"no column file, .* or image in its header, got picture"):
        predict_paths(segmenter, [tmp_path / "odd.csv"], tmp_path / "other")


def test_prefixes_of_an_object_store(segmenter: Segmenter, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name, data in {
        "x/a.png": png(photo(0)),
        "x/deep/b.png": png(photo(1)),
        "x/c.txt": b"",
        "x/empty.png": b"",
    }.items():
        store.pipe(f"/bucket/{name}", data)
    result = predict_paths(segmenter, ["memory://bucket/x"], tmp_path / "out", overlays=False)
    assert [(i.file, str(i.mask)) for i in result.images] == [
        ("memory:///bucket/x/a.png", "masks/a.png"),
        ("memory:///bucket/x/deep/b.png", "masks/deep/b.png"),
    ]
    assert [reason for _, reason in result.failures] == [
        "memory:///bucket/x/empty.png: the image file is empty (0 bytes). Copy it again or leave it out."
    ]
    with pytest.raises(InputError) as caught:
        predict_paths(segmenter, ["memory://nothing/here", "nosuch://x/y"], tmp_path / "other")
    assert "no images under this prefix" in str(caught.value)
    assert "nosuch" in str(caught.value)


@pytest.mark.parametrize("engine", [LocalEngine(), LocalEngine(batch_size=3, decoders=1, writers=1)])
def test_order_and_answers_do_not_depend_on_the_threads(
    segmenter: Segmenter, photos: Path, tmp_path: Path, engine: LocalEngine
) -> None:
    seen: list[str] = []
    result = predict_paths(
        segmenter, [photos], tmp_path / "out", engine=engine, on_progress=lambda *step: seen.append(Path(step[2]).stem)
    )
    assert names(result) == [str(i) for i in range(7)]
    assert seen == ["0", "1", "2", "3-broken", "3", "4", "5", "6"]
    for index in range(7):
        np.testing.assert_array_equal(read_mask(tmp_path / f"out/masks/{index}.png"), expected_mask(photo(index)))


def test_one_bad_image_of_a_batch_costs_only_itself(
    segmenter: Segmenter, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cilseg_serve.segmenter.MAX_WHOLE_PIXELS", 115)  # those of 9 or 10 rows fit, of 11 do not
    result = predict_paths(segmenter, [photos], tmp_path / "out", engine=LocalEngine(batch_size=8))
    assert names(result) == ["0", "1", "3", "4", "6"]
    assert [Path(file).stem for file, _ in result.failures] == ["2", "3-broken", "5"]
    assert "too large to run in one piece" in result.failures[0][1]


def test_formats(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = predict_paths(segmenter, [photos], out, formats=["rle", "polygons", "coco"], overlays=False)
    assert sorted(p.name for p in out.iterdir()) == [
        "coco.json",
        "polygons",
        "predictions.jsonl",
        "rle",
        "summary.json",
    ]
    coco = COCO(out / "coco.json")
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask[coco.annToMask(row) > 0] = row["category_id"]
        index = int(Path(image["file_name"]).stem)
        np.testing.assert_array_equal(mask, expected_mask(photo(index)))
        segments = json.loads((out / f"rle/{index}.json").read_text())["segments"]
        assert {s["category"] for s in segments} <= {"red", "green", "blue"}
        np.testing.assert_array_equal(decode(segments[0]["segmentation"]), mask == segments[0]["category_id"])
        outlines = json.loads((out / f"polygons/{index}.geojson").read_text())
        assert sum(f["properties"]["area"] for f in outlines["features"]) == (mask > 0).sum()
    assert [i.mask for i in result.images] == [None] * 7
    with pytest.raises(InputError, match=r"Unknown output format 'pgn'. Did you mean 'png'"):
        predict_paths(segmenter, [photos], tmp_path / "other", formats=["pgn"])
    with pytest.raises(InputError, match="Nothing would be written"):
        predict_paths(segmenter, [photos], tmp_path / "other", formats=[], overlays=False)


def test_tiles_and_geotiff(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    window = SlidingWindow(segmenter, tile_px=8, overlap_px=4)
    tiled = predict_paths(segmenter, [photos], tmp_path / "tiled", window=window)
    whole = predict_paths(segmenter, [photos], tmp_path / "whole")
    for a, b in zip(tiled.images, whole.images, strict=True):
        np.testing.assert_array_equal(read_mask(tmp_path / "tiled" / a.mask), read_mask(tmp_path / "whole" / b.mask))
    streamed = predict_paths(segmenter, [photos], tmp_path / "geo", formats=["geotiff"], window=window)
    assert [i.coverage for i in streamed.images] == [i.coverage for i in whole.images]
    with rasterio.open(tmp_path / "geo/masks/4.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), expected_mask(photo(4)))
    assert "not a raster" in streamed.failures[0][1]
    with pytest.raises(InputError, match="needs tiles"):
        predict_paths(segmenter, [photos], tmp_path / "no", formats=["geotiff"])
    with pytest.raises(InputError, match=r"written alone.*got png"):
        predict_paths(segmenter, [photos], tmp_path / "no", formats=["geotiff", "png"], window=window)


def test_shards_divide_the_images_and_share_a_folder(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = []
    for index in (1, 2, 3):
        result = predict_paths(segmenter, [photos], out, shard=Shard(index, 3), formats=["png", "coco"], overlays=False)
        files += [i.file for i in result.images] + [file for file, _ in result.failures]
        assert json.loads((out / f"summary-{index}-of-3.json").read_text())["shard"] == f"{index}/3"
        assert (out / f"coco-{index}-of-3.json").is_file()
    assert sorted(files) == sorted(str(p) for p in photos.iterdir())
    assert len(list((out / "masks").iterdir())) == 7
    for text in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(InputError, match=r"Shards are 1/N to N/N|written i/n"):
            Shard.parse(text)


def test_leftovers_of_a_kill_go_but_not_those_of_another_shard(
    segmenter: Segmenter, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict_paths(segmenter, [photos], out, overlays=False, shard=Shard(1, 2))
    mine, other, hidden = (out / "masks" / n for n in (".0.png.ab12cd34.tmp", ".1.png.ab12cd34.tmp", ".keep"))
    for path in (mine, other, hidden):
        path.touch()
    predict_paths(segmenter, [photos], out, overlays=False, shard=Shard(1, 2))
    assert [path.exists() for path in (mine, other, hidden)] == [False, True, True]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the journal, whose failures may stand there twice."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "predictions.jsonl")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_killed_run_is_resumed_to_the_same_result(make_bundle: BundleMaker, tmp_path: Path) -> None:
    """kill -9 of the real command, several times, wherever it is."""
    bundle = make_bundle()
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(120):
        (folder / f"{index:03}.png").write_bytes(png(photo(index)))
    (folder / "050-broken.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "cilseg.cli.main", "predict", str(folder), "-m", str(bundle), "--quiet"]
    command += ["--format", "png", "--format", "coco"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = subprocess.run([*command, "-o", str(whole)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "050-broken.png" in done.stderr

    journal = out / "predictions.jsonl"
    killed_at = []
    for lines in (4, 60):
        process = subprocess.Popen([*command, "-o", str(out), "--resume"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while not journal.is_file() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed_at.append(journal.read_bytes().count(b"\n"))
        assert json.loads((out / "summary.json").read_text())["complete"] is False
    assert killed_at[0] < killed_at[1] < 122
    with journal.open("ab") as stream:
        stream.write(b'{"name": "torn')  # what a kill in the middle of a write leaves
    first = out / "masks/000.png"
    before = first.stat().st_mtime_ns
    (out / "masks/001.png").unlink()  # somebody tidied up
    done = subprocess.run([*command, "-o", str(out), "--resume"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert contents(out) == contents(whole)
    assert first.stat().st_mtime_ns == before, "what was done is not done again"


def test_another_run_is_not_resumed(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_paths(segmenter, [photos], out, overlays=False)
    with pytest.raises(InputError, match=r"of another run \(overlays false, now true\).*choose another output folder"):
        predict_paths(segmenter, [photos], out, resume=True)
    again = predict_paths(segmenter, [photos], out, overlays=False, resume=True)
    assert names(again) == [str(i) for i in range(7)]
    (photos / "9.png").write_bytes(png(photo(9)))
    assert names(predict_paths(segmenter, [photos], out, overlays=False, resume=True))[-1] == "9"


def test_full_disk_ends_the_run(
    segmenter: Segmenter, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cilseg_serve.segmentation.write_mask", full)
    with pytest.raises(OSError, match="No space left"):
        predict_paths(segmenter, [photos], tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["complete"] is False


def test_what_ray_is_refused_for(
    segmenter: Segmenter, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        tar.add(photos / "0.png", "0.png")
    with pytest.raises(InputError, match=r"set.tgz: a compressed archive.*Unpack it"):
        predict_paths(segmenter, [tmp_path / "set.tgz"], tmp_path / "out", engine=RayEngine())
    with pytest.raises(InputError, match="at least 1 worker, got 0"):
        predict_paths(segmenter, [photos], tmp_path / "out", engine=RayEngine(workers=0))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cilseg\[ray\]'"):
        predict_paths(segmenter, [photos], tmp_path / "out", engine=RayEngine())
