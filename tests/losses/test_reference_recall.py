"""RECALL's loss, labels and order against arrays of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cilseg.data.replay import from_helper, helper_labels, inpaint_background, replay_order
from cilseg.errors import InputError
from cilseg.losses.recall import seen_cross_entropy, seen_mask


def test_loss(tensors, agrees, value_and_gradient):
    a = tensors("pixel_recall")
    seen = a["classes_seen"].tolist()
    assert torch.equal(seen_mask(a["labels"], seen), a["mask_seen"])
    value, gradient = value_and_gradient(lambda z: seen_cross_entropy(z, a["labels"], seen_ids=seen), a["logits"])
    agrees(value, a["loss_seen_only"])
    agrees(gradient, a["grad_seen_only"])
    assert seen_cross_entropy(a["logits"], torch.full_like(a["labels"], 255), seen_ids=seen) == 0


def test_labels(reference):
    a = reference("pixel_recall")
    np.testing.assert_array_equal(inpaint_background(a["new_image_labels"], a["previous_argmax"]), a["inpainted"])
    classes = a["helper_classes"].tolist()
    np.testing.assert_array_equal(helper_labels(a["labels"], classes), a["helper_labels_own"])
    back = from_helper(a["helper_logits"].argmax(axis=1), classes)
    np.testing.assert_array_equal(back, a["helper_replay_labels_own"])


@pytest.mark.parametrize(("key", "row", "takes"), [("order_r4_r4_b4", 0, (4, 4)), ("order_r2_r4_b4", 1, (2, 4))])
def test_order(reference, key, row, takes):
    a = reference("pixel_recall")
    n_new, n_replay = a["order_sizes"][row].tolist()
    n_batches, batch_size, _ = a[key].shape
    got = replay_order(
        n_new=n_new,
        n_replay=n_replay,
        take_new=takes[0],
        take_replay=takes[1],
        batch_size=batch_size,
        n_batches=n_batches,
    )
    np.testing.assert_array_equal(got, a[key])


def test_refusals():
    with pytest.raises(InputError, match="needs samples"):
        replay_order(n_new=0, n_replay=3, take_new=1, take_replay=1, batch_size=2, n_batches=1)
    with pytest.raises(InputError, match="resize it first"):
        inpaint_background(np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8))
