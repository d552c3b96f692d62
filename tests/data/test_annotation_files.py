"""Scribbles, priors, folders of images per class, pictures per image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cilseg.classes import UNLABELLED_ID
from cilseg.data.annotations import read_prior, read_scribble
from cilseg.data.image_folders import (
    images_in,
    matching_files,
    open_image_folders,
    priors_in,
    read_saliency,
    read_saliency_of,
)
from cilseg.errors import InputError, NotFoundError


@pytest.fixture
def write(tmp_path):
    def png(name: str, values) -> object:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(values, dtype=np.uint8)).save(path)
        return path

    return png


class TestScribbles:
    def test_values_become_ids(self, write):
        path = write("s.png", [[0, 1, 2], [255, 255, 1]])
        mask = read_scribble(path, class_ids=[7, 9], height=2, width=3)
        assert mask.dtype == np.uint8
        assert mask.tolist() == [[0, 7, 9], [UNLABELLED_ID, UNLABELLED_ID, 7]]

    def test_no_file_is_nothing_scribbled(self):
        assert (read_scribble(None, class_ids=[7], height=2, width=3) == np.full((2, 3), UNLABELLED_ID)).all()

    @pytest.mark.parametrize("unknown", [3, 254])
    def test_values_without_a_meaning(self, write, unknown):
        path = write("s.png", [[0, unknown]])
        with pytest.raises(InputError) as caught:
            read_scribble(path, class_ids=[7, 9], height=1, width=2)
        assert f"{path}: the values [{unknown}] name nothing" in str(caught.value)
        assert "1 to 2 are the classes of the list in their order" in str(caught.value)

    def test_another_size(self, write):
        with pytest.raises(InputError, match="3 x 1 px, but its image has 4 x 1"):
            read_scribble(write("s.png", [[0, 0, 0]]), class_ids=[1], height=1, width=4)


def palette(path, values):
    picture = Image.fromarray(np.array(values, dtype=np.uint8)).convert("P")
    picture.putdata(np.array(values).ravel().tolist())
    picture.putpalette([c for i in range(256) for c in (i, 255 - i, 0)])
    picture.save(path)
    return path


class TestPriors:
    def test_grey_is_for_every_class(self, write):
        found = read_prior(write("p.png", [[0, 100, 255]]), n_classes=2, height=1, width=3)
        assert found.dtype == np.uint8
        assert found.tolist() == [[[0, 0], [100, 100], [255, 255]]]

    def test_indices_of_a_palette_are_classes(self, tmp_path):
        found = read_prior(palette(tmp_path / "p.png", [[0, 1, 2, 255]]), n_classes=2, height=1, width=4)
        assert found.tolist() == [[[0, 0], [255, 0], [0, 255], [255, 255]]]

    def test_an_index_that_is_no_class(self, tmp_path):
        path = palette(tmp_path / "p.png", [[0, 3, 7]])
        with pytest.raises(InputError) as caught:
            read_prior(path, n_classes=2, height=1, width=3)
        assert f"{path}: the indices [3, 7] name nothing; use 0 for none of the classes, 1 to 2 for" in str(
            caught.value
        )

    def test_another_size(self, write):
        with pytest.raises(InputError, match="3 x 1 px, but its image has 4 x 1; resize the prior"):
            read_prior(write("p.png", [[0, 0, 0]]), n_classes=1, height=1, width=4)

    def test_colours(self, write):
        with pytest.raises(InputError, match="coloured; save it as 8-bit grey, or as a palette PNG"):
            read_prior(write("p.png", [[[255, 0, 0]]]), n_classes=1, height=1, width=1)

    def test_a_folder_need_not_have_one_for_every_image(self, write, tmp_path):
        path = write("priors/b.png", [[0]])
        (tmp_path / "priors" / "a.jpg").write_bytes(b"an image beside it")
        files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
        assert priors_in(tmp_path / "priors", files) == (None, path)
        with pytest.raises(InputError, match=r"no PNG in it is named like one of the 1 images .* like a.png"):
            priors_in(tmp_path / "priors", files[:1])
        with pytest.raises(NotFoundError, match=r"no such folder[.] Give a folder of PNGs named like the images"):
            priors_in(tmp_path / "none", files)


class TestFolders:
    def test_one_per_class_in_the_order_of_the_classes(self, write, tmp_path):
        for name in ("dog/b.png", "dog/a.png", "cat/x.png"):
            write(name, [[0]])
        (tmp_path / "dog" / "notes.txt").write_text("")
        (tmp_path / ".hidden").mkdir()
        found = open_image_folders(tmp_path, classes=["dog", "cat"])
        assert found.names == ("dog", "dog", "cat")
        assert [f.name for f in found.files] == ["a.png", "b.png", "x.png"]
        assert images_in(tmp_path / "dog") == list(found.files[:2])

    def test_every_fault_at_once(self, write, tmp_path):
        write("dgo/a.png", [[0]])
        (tmp_path / "cat").mkdir()
        with pytest.raises(InputError) as caught:
            open_image_folders(tmp_path, classes=["dog", "cat"])
        message = str(caught.value)
        assert "3 faults" in message
        assert "folder 'dgo' is no class of the model. Did you mean 'dog'?" in message
        assert "class 'dog' has no folder" in message
        assert "class 'cat' has no image in its folder" in message

    def test_no_folder(self, tmp_path):
        with pytest.raises(NotFoundError, match="does not exist"):
            open_image_folders(tmp_path / "none", classes=["dog"])


class TestPicturesOfImages:
    def test_the_same_stem(self, write, tmp_path):
        maps = [write(f"maps/{n}.png", [[0]]) for n in ("a", "b")]
        files = [tmp_path / "b.jpg", tmp_path / "a.jpg"]
        assert matching_files(tmp_path / "maps", files, what="map") == (maps[1], maps[0])
        with pytest.raises(InputError, match=r"no map for c.jpg \(expected c.png\)"):
            matching_files(tmp_path / "maps", [*files, tmp_path / "c.jpg"], what="map")

    def test_grey_of_any_picture_at_the_size_asked_for(self, write):
        path = write("m.png", np.full((4, 6, 3), (30, 60, 90)))
        found = read_saliency(path, height=8, width=12)
        assert found.shape == (8, 12)
        assert found.dtype == np.uint8
        assert set(found.flat) == {60}

    def test_another_aspect(self, write):
        with pytest.raises(InputError, match="has 60 x 40 px, its image 40 x 60; the two must have the same aspect"):
            read_saliency(write("m.png", np.zeros((40, 60))), height=60, width=40)

    @pytest.mark.parametrize(("short_side_px", "shape"), [(None, (40, 60)), (20, (20, 30))])
    def test_a_map_follows_its_image_to_the_size_of_the_network(self, write, short_side_px, shape):
        image = write("a.png", np.zeros((40, 60, 3)))
        map_ = write("m.png", np.tile(np.arange(0, 240, 8), (20, 1)))
        found = read_saliency_of([map_], [image], short_side_px, 0)
        assert found.shape == shape
        assert found[:, 0].max() < 16
        assert found[:, -1].min() > 220
