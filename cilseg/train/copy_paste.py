"""Objects of stored images, pasted into the images of a step."""

from __future__ import annotations

import numpy as np

from cilseg.classes import VOID_ID
from cilseg.train.dataset import Crop, TrainingSet


def paste_object(stored: TrainingSet, share: float, n_images: int, epoch: int, index: int, crop: Crop) -> Crop:
    """Return the crop of image ``index`` in ``epoch``, in a share of the crops with an object of a stored image.

    The object is all that a crop of the stored image shows of one class. As in the source, that crop has a scale and a
    mirroring of its own, and edges are not blended; here the object's middle then comes to any pixel, all equally
    likely, and what falls outside is lost. Source: Ghiasi, Cui, Srinivas, Qian, Lin, Cubuk, Le, Zoph, "Simple
    Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021.

    Args:
        stored: images with drawn masks; 0 is background and 255 void, neither is pasted.
        share: of the crops that get an object, 0 to 1; a stored crop that shows none gives none.
        n_images: images from this index on are left as they are.
        epoch: with the seed of ``stored`` and ``index`` it decides every draw.
        index: of the image.
        crop: with ``mask``, with or without ``saliency``, of the size of crops of ``stored``; left as it is.

    Returns:
        A crop whose mask has the object's class where the object is, with a saliency of 255.
    """
    rng = np.random.Generator(np.random.PCG64([stored.seed, 4, epoch, index]))
    if index >= n_images or rng.random() >= share:
        return crop
    source = stored.crop(int(rng.integers(stored.size)), rng)
    mask = source["mask"]
    shown = 1 + np.flatnonzero(np.bincount(mask.ravel(), minlength=VOID_ID)[1:VOID_ID])
    if len(shown) == 0:
        return crop
    class_id = rng.choice(shown)
    rows, columns = np.nonzero(mask == class_id)
    height, width = mask.shape
    to_rows = rows - (rows.min() + rows.max()) // 2 + rng.integers(height)
    to_columns = columns - (columns.min() + columns.max()) // 2 + rng.integers(width)
    inside = (to_rows >= 0) & (to_rows < height) & (to_columns >= 0) & (to_columns < width)
    here, there = (rows[inside], columns[inside]), (to_rows[inside], to_columns[inside])
    pasted = {key: plane.copy() for key, plane in crop.items()}
    pasted["image"][there] = source["image"][here]
    pasted["mask"][there] = class_id
    if "saliency" in pasted:
        pasted["saliency"][there] = 255
    return pasted
