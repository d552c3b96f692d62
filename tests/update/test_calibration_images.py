"""Where calibration images come from, and what they are known to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.classes import ClassSet
from cilseg.errors import InputError, NotFoundError
from cilseg.update.calibration import Candidates, open_candidates, presence

CLASSES = ClassSet.base(["cat", "dog"]).extend(["cow"], step=1)


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.mark.parametrize("new", [["cow"], []])
def test_a_tag_list_may_name_the_newest_classes_as_new_or_not(tmp_path: Path, new: list[str]) -> None:
    pictures(tmp_path, "a.png", "b.png")
    path = tmp_path / "tags.json"
    rows = [{"file": "a.png", "present": ["cow", "cat"]}, {"file": "b.png", "present": [], "absent": ["dog"]}]
    classes = [{"name": name} for name in new]
    path.write_text(json.dumps({"schema": "cilseg.tags/1", "classes": classes, "images": rows}))
    found = open_candidates(path, CLASSES)
    assert [file.name for file in found.files] == ["a.png", "b.png"]
    untold = 0 if new else -1  # of a class that the list brings, an image that does not name it lacks it
    np.testing.assert_array_equal(found.states, [[1, -1, 1], [-1, 0, untold]])


def test_faults_of_a_tag_list_are_told(tmp_path: Path) -> None:
    path = tmp_path / "tags.json"
    path.write_text(json.dumps({"schema": "cilseg.tags/1", "images": [{"file": "no.png", "present": ["cat"]}]}))
    with pytest.raises(InputError, match=r"no\.png"):
        open_candidates(path, CLASSES)
    with pytest.raises(NotFoundError, match=r"Calibrate with a tag list \(JSON\) or a folder of images"):
        open_candidates(tmp_path / "nowhere", CLASSES)


def test_a_folder_may_hold_images_and_a_folder_per_class(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    pictures(tmp_path / "cow", "b.png", "c.png")
    found = open_candidates(tmp_path, CLASSES)
    assert [file.name for file in found.files] == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(found.states, [[-1, -1, -1], [-1, -1, 1], [-1, -1, 1]])
    pictures(tmp_path / "cwo", "d.png")
    with pytest.raises(InputError, match=r"cwo is no class of the model\. Did you mean 'cow'\?"):
        open_candidates(tmp_path, CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        open_candidates(tmp_path / "empty", CLASSES)


def test_the_model_speaks_only_where_nothing_is_known() -> None:
    """It sees every class everywhere; the tags say otherwise for cat, and nothing of dog."""
    states = np.array([[0, -1, 1], [0, -1, 0], [1, -1, 0], [0, -1, 0], [0, 1, 0]], dtype=np.int8)
    asked: list[int] = []

    def predict(image: np.ndarray) -> np.ndarray:
        asked.append(int(image[0, 0, 0]))
        return np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(10, 10)

    def prepared(index: int) -> np.ndarray:
        return np.full((10, 10, 3), index, dtype=np.uint8)

    candidates = Candidates("test", tuple(Path(str(i)) for i in range(5)), states)
    shown = presence(candidates, predict, prepared)
    np.testing.assert_array_equal(shown[:, 0], [False, False, True, False, False])
    np.testing.assert_array_equal(shown[:, 2], [True, False, False, False, False])
    np.testing.assert_array_equal(shown[:, 1], [True, False, False, False, True])
    assert asked == [0]  # dog is then seen on two images: by the model on the first, by the tags on the last


def test_a_speck_does_not_count() -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[0, :19] = 1
    mask[1, :20] = 2
    states = np.full((1, 3), -1, dtype=np.int8)
    candidates = Candidates("test", (Path("a"),), states)
    shown = presence(candidates, lambda _: mask, lambda _: np.zeros((100, 100, 3), np.uint8))
    np.testing.assert_array_equal(shown, [[False, True, False]])
