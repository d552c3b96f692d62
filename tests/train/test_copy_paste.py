"""Objects of stored images in other crops: image, mask and saliency agree, and every draw is repeatable."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.data.transforms import TrainTransform
from cilseg.train.copy_paste import paste_object
from cilseg.train.dataset import TrainingSet

N = 12


def grey_image(index):
    return np.full((40, 50, 3), 100 + index, np.uint8)


def object_mask(index):
    """Class ``index + 1`` in the middle, with a rim of void."""
    mask = np.zeros((40, 50), np.uint8)
    mask[9:31, 14:36], mask[10:30, 15:35] = VOID_ID, index + 1
    return mask


def no_objects(index):
    return np.where(object_mask(index) == VOID_ID, VOID_ID, 0).astype(np.uint8)


def stored_set(read_mask=object_mask):
    return TrainingSet(size=3, read_image=grey_image, read_mask=read_mask, transform=TrainTransform(32), seed=5)


def plain(*keys):
    """A crop that shows nothing."""
    planes = {
        "image": np.zeros((32, 32, 3), np.uint8),
        "mask": np.full((32, 32), UNLABELLED_ID, np.uint8),
        "saliency": np.zeros((32, 32), np.uint8),
    }
    return {key: planes[key] for key in keys or planes}


def pasted(share=1.0, *, stored=None, epochs=range(8), crop=None):
    stored = stored or stored_set()
    return {(e, i): paste_object(stored, share, N, e, i, crop or plain()) for e in epochs for i in range(N)}


def test_image_mask_and_saliency_agree():
    seen = set()
    for crop in pasted().values():
        there = crop["mask"] != UNLABELLED_ID
        assert there.any()
        (class_id,) = set(crop["mask"][there].tolist())  # neither background nor void
        assert np.array_equal(crop["saliency"], np.where(there, 255, 0))
        assert np.array_equal(crop["image"], np.where(there[..., None], 100 + class_id - 1, 0).repeat(3, axis=2))
        seen.add(class_id)
    assert seen == {1, 2, 3}


def test_the_object_comes_anywhere():
    rows, columns = np.zeros(32, bool), np.zeros(32, bool)
    for crop in pasted().values():
        there = crop["mask"] != UNLABELLED_ID
        rows |= there.any(axis=1)
        columns |= there.any(axis=0)
    assert rows.all()
    assert columns.all()


def test_draws_depend_on_seed_epoch_and_index_alone():
    first, again = pasted(0.5), pasted(0.5, stored=pickle.loads(pickle.dumps(stored_set())), epochs=range(7, -1, -1))
    assert all(np.array_equal(first[key][k], again[key][k]) for key in first for k in first[key])
    masks = {crop["mask"].tobytes() for crop in pasted().values()}
    assert len(masks) > 0.9 * 8 * N


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_share_of_crops(share):
    changed = [(crop["mask"] != UNLABELLED_ID).any() for crop in pasted(share, epochs=range(40)).values()]
    assert np.mean(changed) == pytest.approx(share, abs=0.06)


def test_what_is_left_as_it_is():
    crop = plain()
    pasted(crop=crop)
    assert all(np.array_equal(crop[key], plain()[key]) for key in crop)
    assert paste_object(stored_set(), 1.0, N, 0, N, crop) is crop  # a stored image itself
    assert all(found is crop for found in pasted(stored=stored_set(no_objects), crop=crop).values())


def test_without_saliency():
    crop = paste_object(stored_set(), 1.0, N, 0, 0, plain("image", "mask"))
    assert crop.keys() == {"image", "mask"}


def test_a_training_set_pastes_into_its_samples():
    data = TrainingSet(size=N, read_image=grey_image, read_mask=no_objects, transform=TrainTransform(32), seed=5)

    def change(epoch, index, crop):
        return {**crop, "mask": np.full_like(crop["mask"], 10 * epoch + index)}

    changed = data.changed(after_crop=change)
    assert (changed.sample(2, 3)["mask"] == 23).all()
    assert np.array_equal(changed.sample(2, 3)["image"], data.sample(2, 3)["image"])
    assert (changed.collate(1, [4, 5])["mask"].numpy()[:, 0, 0] == [14, 15]).all()
