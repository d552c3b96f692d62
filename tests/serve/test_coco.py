from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from cilseg_serve.coco import class_segments, coco_document
from tests.serve.tiny_model import CLASSES


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools.*")
def test_pycocotools_reads_the_masks_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {"a.jpg": rng.integers(0, 4, (7, 9), dtype=np.uint8), "b.jpg": np.full((5, 4), 2, np.uint8)}
    masks["a.jpg"][0] = 255
    document = coco_document(
        [
            ({"file_name": name, "width": mask.shape[1], "height": mask.shape[0]}, class_segments(mask, CLASSES))
            for name, mask in masks.items()
        ],
        CLASSES,
        info={"description": "test"},
    )
    (tmp_path / "coco.json").write_text(json.dumps(document))
    coco = COCO(tmp_path / "coco.json")
    assert {row["id"]: row["name"] for row in coco.loadCats(coco.getCatIds())} == {1: "red", 2: "green", 3: "blue"}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = masks[image["file_name"]]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert {row["category_id"] for row in annotations} == set(np.unique(mask)) - {0, 255}
        for row in annotations:
            np.testing.assert_array_equal(coco.annToMask(row), mask == row["category_id"])
            assert row["area"] == (mask == row["category_id"]).sum()
    assert [row["id"] for row in document["annotations"]] == [1, 2, 3, 4]
    assert [row["bbox"] for row in document["annotations"]][-1] == [0, 0, 4, 5]
