"""What a training step sees: crops that do not depend on workers or order, batches, alignment of masks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import make_data, optimiser_config

from cilseg.data.transforms import TrainTransform
from cilseg.errors import InputError
from cilseg.train.dataset import TrainingSet, epoch_batches


def synthetic(size: int = 11, *, seed: int = 5, masks: bool = True, **options) -> TrainingSet:
    def image(index):
        return np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    return TrainingSet(
        size=size,
        read_image=image,
        read_mask=(lambda index: image(index)[..., 0]) if masks else None,
        tags=np.arange(size * 2, dtype=np.int8).reshape(size, 2),
        transform=TrainTransform(32, **options),
        seed=seed,
    )


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    data, other = synthetic(), synthetic()
    forwards = {(e, i): data.sample(e, i)["image"] for e in range(2) for i in range(11)}
    for epoch in (1, 0):
        for index in reversed(range(11)):
            assert np.array_equal(other.sample(epoch, index)["image"], forwards[epoch, index])
    assert not np.array_equal(forwards[0, 3], forwards[1, 3])
    assert not np.array_equal(synthetic(seed=6).sample(0, 3)["image"], forwards[0, 3])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(scenes, workers):
    data = make_data("base", scenes, optimiser_config())
    before = torch.get_rng_state()
    alone = list(epoch_batches(data, 1, batch_size=4, start=1))
    helped = list(epoch_batches(data, 1, batch_size=4, start=1, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == len(helped) == 3
    for ours, theirs in zip(alone, helped, strict=True):
        assert ours.keys() == theirs.keys() == {"image", "mask"}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_reported_as_such(scenes, workers):
    data = make_data("base", scenes, optimiser_config())

    def damaged(index):
        raise InputError(f"Image {index}.png is empty. Replace it.")

    data.read_image = damaged
    with pytest.raises(InputError) as caught:
        list(epoch_batches(data, 0, batch_size=4, workers=workers))
    assert str(caught.value).endswith(".png is empty. Replace it.")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("kind", ["base", "wilson"])
def test_training_sets_can_be_sent_to_spawned_workers(scenes, kind):
    data = make_data(kind, scenes, optimiser_config())
    twin = pickle.loads(pickle.dumps(data))
    assert np.array_equal(twin.sample(0, 2)["image"], data.sample(0, 2)["image"])


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 12), epoch=st.integers(0, 5))
def test_an_epoch_holds_each_image_at_most_once(size, batch_size, epoch):
    data = synthetic(size)
    batches = data.batch_indices(epoch, batch_size)
    flat = [i for batch in batches for i in batch]
    assert len(batches) == data.iterations(batch_size)
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(size))
    assert len(flat) == (size // batch_size * batch_size or size)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(2, 40), batch_size=st.integers(2, 12), world=st.integers(2, 4))
def test_processes_share_a_batch_without_overlap(size, batch_size, world):
    data = synthetic(size)
    whole = data.batch_indices(3, batch_size)
    shares = [data.batch_indices(3, batch_size, rank=rank, world=world) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(i for part in parts for i in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_differ_in_order():
    data = synthetic(40)
    assert data.order(0).tolist() == synthetic(40).order(0).tolist() != data.order(1).tolist()


def test_batches_hold_what_the_supervision_allows():
    batch = synthetic().collate(0, [4, 2])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (2, 32, 32)
    assert batch["mask"].dtype == torch.int64
    assert batch["tags"].tolist() == [[8, 9], [4, 5]]
    assert "mask" not in synthetic(masks=False).collate(0, [4, 2])


def test_saliency_is_cut_as_the_mask_is():
    data = synthetic()
    data.read_saliency = data.read_mask
    batch = data.collate(1, [4, 2])
    assert batch["saliency"].dtype == torch.uint8
    assert torch.equal(batch["saliency"].long(), batch["mask"])
    plain = synthetic().collate(1, [4, 2])
    assert torch.equal(batch["image"], plain["image"])
    data.read_mask = None
    alone = data.collate(1, [4, 2])
    assert torch.equal(alone["saliency"], batch["saliency"])
    assert "mask" not in alone


def test_a_plan_decides_the_batches():
    data = synthetic()
    planned = data.changed(plan=lambda epoch, size: [[epoch] * size, [3, 4, 5, 6]])
    assert planned.iterations(4) == 2
    assert planned.batch_indices(1, 4) == [[1, 1, 1, 1], [3, 4, 5, 6]]
    assert planned.batch_indices(1, 4, rank=1, world=2) == [[1, 1], [4, 6]]
    batches = list(epoch_batches(planned, 1, batch_size=4))
    assert [b["tags"][:, 0].tolist() for b in batches] == [[2, 2, 2, 2], [6, 8, 10, 12]]
    assert data.batch_indices(1, 4) == synthetic().batch_indices(1, 4)  # the first set stays as it was


def test_a_changed_copy_reads_anew():
    data = synthetic()
    first = data.sample(0, 3)
    black = data.changed(read_mask=lambda _: np.zeros((40, 50), np.uint8))
    assert not black.sample(0, 3)["mask"].any()
    assert np.array_equal(black.sample(0, 3)["image"], first["image"])
    assert np.array_equal(data.sample(0, 3)["mask"], first["mask"])
    with pytest.raises(InputError, match="no image to train on"):
        data.changed(size=0)


def test_files_made_per_image_have_names_in_order():
    data = synthetic()
    assert data.name(7) == "00007"
    named = data.changed(names=[f"img{i}" for i in range(11)])
    assert named.name(7) == "00007-img7"
    assert len({named.name(i) for i in range(11)}) == 11


def test_no_images():
    with pytest.raises(InputError, match=r"no image to train on\. Check the split list or the tag list"):
        synthetic(0)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 200),
    width=st.integers(8, 200),
    size=st.sampled_from([16, 33, 64]),
    low=st.sampled_from([0.1, 0.5, 1.5]),
    seed=st.integers(0, 10_000),
)
def test_crops_lie_inside_the_image_and_masks_stay_aligned(height, width, size, low, seed):
    """The mask is the column (then the row) of each pixel, so that it can be compared with the image's colour."""
    image = coordinates(height, width)
    transform = TrainTransform(size, scale=(low, 2.0))
    crops = [transform(image, image[..., c], np.random.default_rng(seed)) for c in (0, 1)]
    flipped = int(crops[0][0][0, 0, 0]) > int(crops[0][0][0, -1, 0])
    for channel, (crop, mask) in enumerate(crops):
        assert crop.shape == (size, size, 3)
        assert mask.shape == (size, size)
        assert mask.max() <= (width, height)[channel] - 1
        pixels_per_pixel = max(1.0, (width, height)[channel] / size)
        assert np.abs(crop[..., channel].astype(int) - mask.astype(int)).max() <= pixels_per_pixel + 1
    rows = crops[1][1].astype(int)
    columns = crops[0][1].astype(int)[:, ::-1] if flipped else crops[0][1].astype(int)
    assert (np.diff(rows, axis=0) >= 0).all()  # never upside down
    assert (np.diff(columns, axis=1) >= 0).all()


def test_both_ways_round_and_of_many_sizes():
    image = coordinates(100, 100)
    crops = [TrainTransform(50)(image, None, np.random.default_rng(seed)) for seed in range(60)]
    assert all(mask is None for _, mask in crops)
    flips = sum(int(crop[0, 0, 0]) > int(crop[0, -1, 0]) for crop, _ in crops)
    assert 15 < flips < 45
    extents = {abs(int(crop[0, -1, 0]) - int(crop[0, 0, 0])) for crop, _ in crops}
    assert max(extents) - min(extents) > 15


def test_jitter_changes_colours_but_not_the_crop():
    image = np.full((40, 40, 3), 120, np.uint8)
    mask = np.tile(np.arange(40, dtype=np.uint8), (40, 1))
    plain = TrainTransform(32)(image, mask, np.random.default_rng(0))
    colourful = TrainTransform(32, jitter=0.5)(image, mask, np.random.default_rng(0))
    assert np.array_equal(plain[1], colourful[1])
    assert not np.array_equal(plain[0], colourful[0])
