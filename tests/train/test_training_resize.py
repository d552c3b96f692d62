"""Training crops come from the image as the network sees it: resized where the preprocessing says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.bundle import Preprocessing
from cilseg.classes import ClassSet
from cilseg.config import OptimiserConfig
from cilseg.data.source import open_source
from cilseg.train.steps import masked_set, tagged_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 45:] = 200
    mask = np.zeros((60, 90), np.uint8)
    mask[:, 45:] = 1
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "labels.txt").write_text("background\nright\n")
    return tmp_path


@pytest.mark.parametrize(("short_side_px", "size_hw"), [(None, (60, 90)), (30, (30, 45)), (120, (120, 180))])
def test_images_and_masks_are_resized_together(root: Path, short_side_px: int | None, size_hw: tuple[int, int]) -> None:
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=short_side_px)
    source = open_source(root, split="train")
    optimiser = OptimiserConfig(crop_px=32)
    masked = masked_set(
        source, ClassSet.base(["right"]), optimiser, visible=["right"], seed=0, preprocessing=preprocessing
    )
    assert masked.read_mask is not None
    image, mask = masked.read_image(0), masked.read_mask(0)
    assert image.shape[:2] == mask.shape == size_hw
    assert ((image[..., 0] > 100) == (mask == 1)).mean() > 0.95
    tagged = tagged_files(source.image_paths, np.ones((1, 1), np.int8), optimiser, seed=0, preprocessing=preprocessing)
    assert tagged.read_image(0).shape[:2] == size_hw
