"""The gate set: halves, images that were trained on, and how often it was used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.data.source import Source, open_source
from cilseg.errors import InputError
from cilseg.update.gate_set import check_unseen, halves, image_hashes, training_list


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """30 images: all show cat, every third dog, every tenth a cow."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labels.txt").write_text("background\ncat\ndog\ncow\n")
    for i in range(30):
        mask = np.zeros((6, 6), dtype=np.uint8)
        mask[0, 0], mask[1, 1], mask[2, 2] = 1, 2 * (i % 3 == 0), 3 * (i % 10 == 0)
        Image.fromarray(np.full((6, 6, 3), i, dtype=np.uint8)).save(tmp_path / "images" / f"i{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"i{i}.png")
    (tmp_path / "val.txt").write_text("".join(f"i{i}\n" for i in range(30)))
    return open_source(tmp_path, split="val")


def test_halves_share_every_class_and_no_image(source: Source) -> None:
    first, second = halves(source)
    assert sorted([*first, *second], key=source.ids.index) == list(source.ids)
    assert first == [i for i in source.ids if i in set(first)]
    counts = [Counter(n for i in half for n in source.classes_in(source.ids.index(i))) for half in (first, second)]
    for name in ("cat", "dog", "cow"):
        assert abs(counts[0][name] - counts[1][name]) <= 2
        assert min(c[name] for c in counts) >= 1
    assert halves(source) == (first, second)


def test_images_are_known_again_by_content(source: Source, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.bin"
    copy.write_bytes(source.image_paths[4].read_bytes())
    trained = dict.fromkeys(training_list([copy]).split(), "animals:2")
    with pytest.raises(InputError) as caught:
        check_unseen(source, trained)
    assert "1 fault" in str(caught.value)
    assert "image 'i4' was trained on (animals:2)" in str(caught.value)
    assert "Take them out of the gate set" in str(caught.value)
    assert len(set(image_hashes(source.image_paths))) == 30
    check_unseen(source.subset(["i5", "i6"]), trained)
    check_unseen(source, {})
