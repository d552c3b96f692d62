"""Stored images: picked for coverage, written byte for byte, refused when damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cilseg.data.memory import MEMORY_FILE, open_memory, pick_by_coverage, write_memory
from cilseg.errors import ArtifactError, InputError


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**31))
def test_every_class_is_covered_before_any_is_covered_twice(images: int, classes: int, budget: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shown = np.zeros((images, classes), dtype=bool)
    shown[np.arange(images), rng.integers(0, classes, images)] = True  # one class an image
    chosen = pick_by_coverage(shown, rng.normal(size=(images, 3)), budget=budget)
    assert len(chosen) == len(set(chosen)) == min(budget, images)
    counts, there = shown[chosen].sum(axis=0), shown.sum(axis=0)
    for c in range(classes):  # a class falls behind only when it has no image left
        assert counts[c] == there[c] or counts[c] >= counts.max() - 1


def test_of_a_class_the_image_farthest_from_the_chosen_ones_comes_next() -> None:
    features = np.array([[1, 0], [0.99, 0.1], [0, 1], [0.9, 0.4], [-1, 0.1]])
    chosen = pick_by_coverage(np.ones((5, 1), dtype=bool), features, budget=3)
    assert chosen[1:] == [4, 2] or chosen[1:] == [4, 0]
    assert chosen[0] in (1, 3)  # the most typical


def test_images_without_any_class_are_not_stored() -> None:
    shown = np.array([[False], [True], [False]])
    assert pick_by_coverage(shown, np.eye(3), budget=3) == [1]
    with pytest.raises(InputError, match="at least one image, got 0"):
        pick_by_coverage(shown, np.eye(3), budget=0)


def test_what_was_stored_is_read_back_and_equal_contents_make_equal_archives(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8, 10, 3), dtype=np.uint8) for _ in range(2)]
    masks = [rng.integers(0, 3, (8, 10), dtype=np.uint8) for _ in range(2)]
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_memory(tmp_path / name / MEMORY_FILE, files, masks, n_channels=3)
    stored = open_memory(tmp_path / "a")
    assert stored is not None
    assert stored.n_channels == 3
    for i in range(2):
        assert np.array_equal(stored.image(i), images[i])
        assert np.array_equal(stored.mask(i), masks[i])
    assert (tmp_path / "a" / MEMORY_FILE).read_bytes() == (tmp_path / "b" / MEMORY_FILE).read_bytes()


def test_a_damaged_archive_is_refused_and_none_is_none(tmp_path) -> None:
    assert open_memory(tmp_path) is None
    (tmp_path / MEMORY_FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ArtifactError, match=r"memory\.zip cannot be read.*Copy the version again"):
        open_memory(tmp_path)
