"""Generated scenes: determinism, exact masks, the folder they are written to; colour alone does not solve them."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cilseg.cli import scenes as scenes_cli
from cilseg.data import scenes
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes, parse_size, render_scene
from cilseg.errors import InputError


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_scene_has_the_documented_shapes_and_types() -> None:
    image, mask = render_scene(0, 0)
    assert (image.shape, image.dtype) == ((128, 128, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((128, 128), np.uint8)


@pytest.mark.parametrize("size", [48, 97, (64, 112), (131, 80)])
def test_any_size_gives_visible_objects(size: int | tuple[int, int]) -> None:
    expected = (size, size) if isinstance(size, int) else size
    for index in range(12):
        image, mask = render_scene(1, index, size_px=size)
        assert image.shape == (*expected, 3)
        ids, counts = np.unique(mask[mask > 0], return_counts=True)
        assert 1 <= len(ids) <= 4
        assert counts.min() >= 30
        assert ids.max() <= len(SCENE_CLASSES)


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    image, mask = render_scene(3, 5, split="val")
    again, mask_again = render_scene(3, 5, split="val")
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    others = [render_scene(4, 5, split="val"), render_scene(3, 6, split="val"), render_scene(3, 5, split="train")]
    for other, _ in others:
        assert not np.array_equal(image, other)


def test_another_process_renders_the_same_scene() -> None:
    code = "import zlib; from cilseg.data import scenes; print(zlib.crc32(scenes.render_scene(8, 2)[0].tobytes()))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(elsewhere) == zlib.crc32(render_scene(8, 2)[0].tobytes())


def test_every_class_appears_in_a_quarter_to_a_third_of_the_scenes_beside_others() -> None:
    masks = [render_scene(0, i, size_px=64)[1] for i in range(240)]
    present = np.array([[(m == i + 1).any() for i in range(len(SCENE_CLASSES))] for m in masks])
    share = present.mean(axis=0)
    assert share.min() > 0.2
    assert share.max() < 0.4
    together = present.T.astype(int) @ present.astype(int)
    assert (together > 0).all()
    assert 2.0 < present.sum(axis=1).mean() < 2.7


def test_objects_vary_threefold_in_size() -> None:
    areas = [np.count_nonzero(m) for m in (render_scene(0, i, size_px=96, classes=["lifebuoy"])[1] for i in range(60))]
    assert max(areas) > 6 * min(areas)


def test_classes_limit_what_appears_and_number_it() -> None:
    ids = set()
    for index in range(12):
        ids |= set(np.unique(render_scene(0, index, classes=["tree", "boat"])[1]).tolist())
    assert ids == {0, 1, 2}


def test_an_object_changes_the_picture_where_its_mask_says_so() -> None:
    """Pixels of an object differ from the ground around it: the border of a mask is a border in the picture."""
    inside, across = [], []
    for index in range(40):
        image, mask = render_scene(2, index)
        step = np.abs(np.diff(image.astype(int), axis=1)).sum(axis=2)
        border = mask[:, 1:] != mask[:, :-1]
        across.append(step[border].mean())
        inside.append(step[~border].mean())
    assert np.mean(across) > 1.5 * np.mean(inside)


def test_colour_and_position_do_not_solve_the_scenes() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    n_classes = len(SCENE_CLASSES) + 1
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] / 127.0

    def sample(split: str, count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for index in range(count):
            image, mask = render_scene(0, index, split=split)
            chosen = rng.choice(mask.size, pixels, replace=False)
            features.append(np.dstack([image / 255.0, y, x]).reshape(-1, 5)[chosen])
            labels.append(mask.ravel()[chosen])
        return np.concatenate(features), np.concatenate(labels)

    model = neighbors.KNeighborsClassifier(5).fit(*sample("train", 100, 600))
    features, truth = sample("val", 60, 300)
    matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(matrix, (truth, model.predict(features)), 1)
    hits = np.diag(matrix)
    iou = hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)
    assert iou.mean() < 0.30
    assert iou[0] > 0.5  # the classifier did learn something: the ground is most of a picture


def test_the_folder_holds_the_documented_files(tmp_path: Path) -> None:
    root = generate_scenes(tmp_path / "new" / "set", train=3, val=2, size_px=(64, 80), seed=5, classes=["fish", "leaf"])
    names = set(files_of(root))
    stems = ["train_00000", "train_00001", "train_00002", "val_00000", "val_00001"]
    expected = {f"{d}/{s}.png" for d in ("images", "masks") for s in stems}
    assert names == expected | {"train.txt", "val.txt", "labels.txt", "scenes.json"}
    assert (root / "train.txt").read_text().split() == stems[:3]
    assert (root / "val.txt").read_text().split() == stems[3:]
    assert (root / "labels.txt").read_text().split() == ["background", "fish", "leaf"]
    image, mask = render_scene(5, 1, split="val", size_px=(64, 80), classes=["fish", "leaf"])
    with Image.open(root / "images" / "val_00001.png") as stored:
        assert np.array_equal(np.asarray(stored), image)
    with Image.open(root / "masks" / "val_00001.png") as stored:
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), mask)
    assert [p.name for p in root.parent.iterdir()] == ["set"]


def test_scenes_do_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    few = files_of(generate_scenes(tmp_path / "few", train=1, val=1, size_px=64))
    more = files_of(generate_scenes(tmp_path / "more", train=3, val=2, size_px=64))
    for name in ("images/train_00000.png", "masks/train_00000.png", "images/val_00000.png"):
        assert few[name] == more[name]


def test_the_same_request_again_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = generate_scenes(tmp_path / "s", train=2, val=1, size_px=64)
    before = files_of(root)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(scenes, "render_scene", never)
    assert generate_scenes(tmp_path / "s", train=2, val=1, size_px=64) == root
    assert files_of(root) == before


def test_another_request_is_refused_and_the_folder_kept(tmp_path: Path) -> None:
    root = generate_scenes(tmp_path / "s", train=2, val=1, size_px=64)
    before = files_of(root)
    with pytest.raises(InputError, match=r"holds other scenes \(seed 0, asked for 1\); choose another folder"):
        generate_scenes(root, train=2, val=1, size_px=64, seed=1)
    (root / "masks" / "val_00000.png").unlink()
    with pytest.raises(InputError, match=r"1 file is gone since the scenes were made, first masks/val_00000\.png"):
        generate_scenes(root, train=2, val=1, size_px=64)
    del before["masks/val_00000.png"]
    assert files_of(root) == before


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    if content is not None:
        (tmp_path / "scenes.json").write_text(content)
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=r"not written by this generator; choose another folder"):
        generate_scenes(tmp_path, train=1, val=1, size_px=64)
    assert files_of(tmp_path) == before


def test_an_empty_folder_is_used_and_a_file_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (generate_scenes(tmp_path / "empty", train=1, val=0, size_px=64) / "labels.txt").is_file()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        generate_scenes(tmp_path / "file", train=1, val=0, size_px=64)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_scenes(tmp_path / "s", train=3, val=1, size_px=64, on_scene=stop)
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_request_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        generate_scenes(tmp_path / "s", train=-1, val=1, size_px=16, classes=["Fsh", "tree", "tree"])
    text = str(caught.value)
    for part in (
        "4 faults",
        "unknown class 'Fsh'. Did you mean 'fish'?",
        "'tree' is named 2 times",
        "16 x 16 px: each side must be 48 to 4096 px",
        "train must not be negative, got -1",
    ):
        assert part in text
    assert not (tmp_path / "s").exists()


def test_an_empty_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to generate"):
        generate_scenes(tmp_path / "s", train=0, val=0)
    with pytest.raises(InputError, match="classes is empty"):
        render_scene(0, 0, classes=[])


def test_sizes_are_read_from_text() -> None:
    assert parse_size("128") == 128
    assert parse_size("160x224") == (160, 224)
    for text in ("", "x", "1x2x3", "-5", "12.5"):
        with pytest.raises(InputError, match="height x width"):
            parse_size(text)


def test_the_command_writes_and_reports(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(scenes_cli.command)
    target = str(tmp_path / "s")
    arguments = [target, "--train", "1", "--val", "1", "--size", "64x96", "-c", "fish", "-c", "boat", "--json", "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["root"] == target
    assert report["size_hw"] == [64, 96]
    assert report["classes"] == ["fish", "boat"]
    assert (tmp_path / "s" / "labels.txt").read_text().split() == ["background", "fish", "boat"]
