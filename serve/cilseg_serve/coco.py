"""Masks as COCO annotations: one per class and image, its pixels as packed run lengths.

Categories carry our class ids (background is 0 and is no category); pycocotools and the usual annotation tools read
the result. COCO's polygons cannot have holes, so regions are run lengths here; outlines are GeoJSON
(:mod:`cilseg_serve.polygons`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.classes import ClassSet
from cilseg_serve.rle import area_and_box, encode


def class_segments(mask: npt.NDArray[np.uint8], class_set: ClassSet) -> list[dict[str, Any]]:
    """Return one row per foreground class that occurs in a mask ``(H, W)``, in id order.

    Keys: ``category_id``, ``category``, ``area`` in pixels, ``bbox`` ``[x, y, width, height]``, ``segmentation``
    (packed run lengths).

    Raises:
        InputError: no pixels.
    """
    rows = []
    for index, name in enumerate(class_set.names):
        inside = mask == index
        if index == 0 or not inside.any():
            continue
        area, box = area_and_box(inside)
        rows.append(
            {
                "category_id": index,
                "category": name,
                "area": area,
                "bbox": list(box),
                "segmentation": encode(inside),
            }
        )
    return rows


def coco_document(
    images: Iterable[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]],
    class_set: ClassSet,
    *,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a COCO document of images and their segments; ids count from 1 in the order given.

    Args:
        images: per image its ``file_name``, ``width`` and ``height``, and the rows of :func:`class_segments`.
        info: goes into the document as it is.
    """
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, segments in images:
        listed.append({"id": len(listed) + 1, **image})
        for segment in segments:
            row = {k: v for k, v in segment.items() if k != "category"}
            annotations.append({"id": len(annotations) + 1, "image_id": len(listed), "iscrowd": 0, **row})
    categories = [
        {"id": index, "name": name, "supercategory": "", "color": list(map(int, class_set.palette[index]))}
        for index, name in enumerate(class_set.names)
        if index
    ]
    return {"info": dict(info), "licenses": [], "images": listed, "annotations": annotations, "categories": categories}
