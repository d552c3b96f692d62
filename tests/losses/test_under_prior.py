"""Priors lower shares softly."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.label_making import under_prior


@pytest.mark.parametrize("weight", [0.0, 0.8, 1.0])
def test_a_prior_of_nothing_leaves_what_its_weight_leaves(weight):
    shares = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = torch.zeros(1, 2, 8, 8)
    prior[:, 0, :, 4:] = 1.0
    found = under_prior(shares, prior, weight=weight)
    assert torch.equal(found[:, 0, :, 2:], shares[:, 0, :, 2:])
    torch.testing.assert_close(found[:, 0, :, :2], (1.0 - weight) * shares[:, 0, :, :2])
    torch.testing.assert_close(found[:, 1], (1.0 - weight) * shares[:, 1])


def test_one_prior_for_all_classes_is_brought_to_the_size_by_its_mean():
    prior = torch.zeros(1, 1, 4, 4)
    prior[0, 0, 0, 0] = 1.0  # a quarter of the first cell
    found = under_prior(torch.ones(1, 3, 2, 2), prior, weight=1.0)
    assert found[0, :, 0, 0].tolist() == [0.25] * 3
    assert found[0, :, 1].eq(0).all()
