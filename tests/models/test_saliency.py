"""Training-free saliency: an object on a ground, images on their own, refusals."""

from __future__ import annotations

import pytest
import torch

from cilseg.errors import InputError
from cilseg.models.saliency import boundary_saliency


def scene(*, seed=0, flip=1.0):
    """An object of 5 x 6 cells with features of its own, and the picture of it; cells are 16 pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    ground, thing = torch.randn(2, 24, generator=generator)
    inside = torch.zeros(12, 15, dtype=torch.bool)
    inside[4:9, 5:11] = True
    features = torch.where(inside, flip * thing[:, None, None], flip * ground[:, None, None])
    features = features + 0.1 * torch.randn(24, 12, 15, generator=generator)
    pixels = inside.repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = pixels.float() + 0.02 * torch.randn(3, 192, 240, generator=generator)
    return features[None], image[None], inside


@pytest.mark.parametrize("iterations", [0, 30])
def test_an_object_away_from_the_border_is_salient(iterations):
    features, image, inside = scene()
    saliency = boundary_saliency(features, image, refinement_iterations=iterations)
    assert saliency.shape == (1, 12, 15)
    assert saliency.min() == 0
    assert saliency.max() == 1
    assert torch.equal(saliency[0].round().bool(), inside)


def test_neither_scaling_nor_sign_nor_neighbours_in_the_batch_matter():
    features, image, _ = scene()
    alone = boundary_saliency(features, image)
    torch.testing.assert_close(boundary_saliency(3 * features + 5, 40 * image - 7), alone, rtol=1e-3, atol=1e-3)
    other, picture, _ = scene(seed=4, flip=-1.0)
    both = boundary_saliency(torch.cat([other, features]), torch.cat([picture, image]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both[:1], boundary_saliency(other, picture), rtol=1e-3, atol=1e-3)


def test_nothing_is_salient_where_all_is_alike():
    features = torch.ones(1, 8, 6, 6)
    assert (boundary_saliency(features, torch.rand(1, 3, 96, 96)) == 0).all()


def test_no_gradient_and_low_precision():
    features, image, inside = scene()
    saliency = boundary_saliency(features.to(torch.bfloat16).requires_grad_(), image.to(torch.bfloat16))
    assert saliency.dtype == torch.float32
    assert not saliency.requires_grad
    assert torch.equal(saliency[0].round().bool(), inside)


def test_too_few_cells():
    with pytest.raises(InputError, match=r"at least 3 x 3 cells, got 2 x 9\. Use larger images"):
        boundary_saliency(torch.rand(1, 4, 2, 9), torch.rand(1, 3, 32, 144))
