from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cilseg.cli.predict import command
from cilseg.errors import InputError, ParityError
from cilseg_serve import Segmenter, predict_paths, read_image, read_mask
from tests.serve.conftest import BundleMaker
from tests.serve.tiny_model import CLASSES, expected_mask

Image8 = npt.NDArray[np.uint8]


@pytest.fixture
def segmenter(make_bundle: BundleMaker) -> Segmenter:
    return Segmenter(make_bundle())


@pytest.fixture
def photos(tmp_path: Path, color_image: Image8) -> Path:
    """Folder with two images of one name, one in a sub-folder, a corrupt one, a hidden one and a text file."""
    folder = tmp_path / "photos"
    (folder / "farm").mkdir(parents=True)
    Image.fromarray(color_image).save(folder / "a.png")
    Image.fromarray(color_image[::-1].copy()).save(folder / "a.bmp")
    Image.fromarray(color_image[:9, :13].copy()).save(folder / "farm" / "a.PNG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / "notes.txt").write_text("no image")
    return folder


def files_under(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_folder_becomes_masks_overlays_and_a_summary(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    result = predict_paths(
        segmenter, [photos], out, on_progress=lambda *step: seen.append((*step[:2], Path(step[2]).name))
    )
    assert files_under(out) == [
        "masks/a-2.png",
        "masks/a.png",
        "masks/farm/a.png",
        "overlays/a-2.jpg",
        "overlays/a.jpg",
        "overlays/farm/a.jpg",
        "predictions.jsonl",
        "summary.json",
    ]
    assert seen == [(1, 4, "a.bmp"), (2, 4, "a.png"), (3, 4, "broken.jpg"), (4, 4, "a.PNG")]
    for row in result.images:
        image = read_image(row.file)
        np.testing.assert_array_equal(read_mask(out / row.mask), expected_mask(image))
        assert row.overlay is not None
        assert read_image(out / row.overlay).shape == image.shape
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert summary["complete"] is True
    assert summary["model"] == {"name": segmenter.name, "digest": segmenter.digest}
    assert [c["name"] for c in summary["classes"]] == list(CLASSES.names)
    first = summary["images"][1]
    assert (first["file"], first["mask"], first["overlay"]) == (
        str(photos / "a.png"),
        "masks/a-2.png",
        "overlays/a-2.jpg",
    )
    assert (first["width_px"], first["height_px"]) == (30, 24)
    assert first["coverage"]["green"] == pytest.approx(16 * 8 / (24 * 30), abs=1e-6)
    [failure] = summary["failures"]
    assert failure["file"] == str(photos / "broken.jpg")
    assert "damaged image header" in failure["reason"]


def test_files_named_twice_are_done_once_and_overlays_can_be_left_out(
    segmenter: Segmenter, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = predict_paths(segmenter, [photos / "a.png", photos / "farm", photos / "a.png"], out, overlays=False)
    assert files_under(out) == ["masks/a-2.png", "masks/a.png", "predictions.jsonl", "summary.json"]
    assert [image.overlay for image in result.images] == [None, None]


def test_second_run_into_a_folder_below_the_input_does_not_eat_its_own_output(
    segmenter: Segmenter, photos: Path
) -> None:
    (photos / "broken.jpg").unlink()
    for out in (photos / "out", photos):
        first = predict_paths(segmenter, [photos], out)
        before = files_under(photos)
        second = predict_paths(segmenter, [photos], out)
        assert [i.file for i in second.images] == [i.file for i in first.images]
        assert files_under(photos) == before
        for file in [*out.glob("masks/**/*.*"), *out.glob("overlays/**/*.*"), *out.glob("*.json*")]:
            file.unlink()


def test_ground_truth_masks_are_never_overwritten(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"truth")
    with pytest.raises(InputError, match="already holds masks/ that cilseg predict did not write"):
        predict_paths(segmenter, [photos], tmp_path)
    assert (tmp_path / "masks" / "a.png").read_bytes() == b"truth"
    assert not (tmp_path / "summary.json").exists()


def test_bad_inputs_are_reported_together_and_nothing_is_written(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        predict_paths(segmenter, [tmp_path / "bare", tmp_path / "gone.jpg"], out)
    text = str(caught.value)
    assert "2 faults" in text
    assert f"{tmp_path / 'bare'}: no images in this folder" in text
    assert f"{tmp_path / 'gone.jpg'}: no such file or folder" in text
    with pytest.raises(InputError, match="none were given"):
        predict_paths(segmenter, [], out)
    assert not out.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, expected a folder"):
        predict_paths(segmenter, [tmp_path / "bare"], tmp_path / "file")


def test_interrupted_run_is_marked_incomplete_and_can_be_repeated(
    segmenter: Segmenter, photos: Path, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_paths(segmenter, [photos], out, on_progress=interrupt)
    assert json.loads((out / "summary.json").read_text())["complete"] is False
    assert predict_paths(segmenter, [photos], out).summary["complete"] is True


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("predict")(command)
    return app


def test_command_prints_json_and_exits_1_for_a_corrupt_image(
    app: typer.Typer, make_bundle: BundleMaker, photos: Path, tmp_path: Path
) -> None:
    arguments = [str(photos), "-o", str(tmp_path / "out"), "--model", str(make_bundle()), "--json", "--quiet"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert done.stderr.startswith(f"skipped: {photos / 'broken.jpg'}: damaged image header")


def test_command_prints_a_table_and_exits_0(
    app: typer.Typer, make_bundle: BundleMaker, photos: Path, tmp_path: Path
) -> None:
    arguments = [str(photos / "farm"), "-o", str(tmp_path / "out"), "-m", str(make_bundle()), "--no-overlays"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 image by" in done.stdout
    for name in CLASSES.names:
        assert name in done.stdout
    assert not (tmp_path / "out" / "overlays").exists()


def test_command_refuses_an_unverified_model_unless_asked(
    app: typer.Typer, make_bundle: BundleMaker, photos: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(metadata={})
    arguments = [str(photos / "farm"), "-o", str(tmp_path / "out"), "-m", str(bundle)]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ParityError)
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*arguments, "--allow-unverified"]).exit_code == 0
