"""Pixel affinities and the random walk against the published implementation's arrays."""

from __future__ import annotations

import pytest
import torch

from cilseg.errors import InputError
from cilseg.losses.affinity import (
    affinity_loss,
    affinity_losses,
    affinity_matrix,
    affinity_targets,
    neighbour_offsets,
    pair_affinity,
    pairs_of_cells,
    random_walk,
)


def test_targets(tensors, agrees):
    arrays = tensors("affinity_labels_loss")
    radius = int(arrays["radius"])
    assert [list(offset) for offset in neighbour_offsets(radius)] == arrays["search_dist"].tolist()
    targets = affinity_targets(arrays["label"].unsqueeze(0), radius=radius)
    agrees(targets.background[0], arrays["bg_pos"])
    agrees(targets.foreground[0], arrays["fg_pos"])
    agrees(targets.different[0], arrays["neg"])


def test_loss(tensors, agrees, value_and_gradient):
    arrays = tensors("affinity_labels_loss")
    targets = affinity_targets(arrays["label"].unsqueeze(0), radius=int(arrays["radius"]))
    value, gradient = value_and_gradient(lambda a: affinity_loss(a, targets), arrays["aff"])
    # The published code counts its pairs in float32: the 1e-5 in the denominators is rounded.
    agrees(value, arrays["loss"], tolerance=1e-6)
    agrees(gradient, arrays["grad_aff"], tolerance=1e-6)
    parts = affinity_losses(arrays["aff"], targets)
    for ours, stored in (("background", "bg"), ("foreground", "fg"), ("different", "neg")):
        agrees(parts[ours], arrays[f"{stored}_loss"], tolerance=1e-6)


def test_random_walk(tensors, agrees):
    arrays = tensors("random_walk")
    options = {"power": float(arrays["beta"]), "doublings": int(arrays["logt"])}
    n_cells = arrays["cam"].shape[1]
    walked = random_walk(arrays["cam"].view(1, -1, 1, n_cells), arrays["aff"].unsqueeze(0), **options)
    agrees(walked[0, :, 0], arrays["out"])
    identity = torch.eye(n_cells, dtype=arrays["aff"].dtype).view(1, n_cells, 1, n_cells)
    agrees(random_walk(identity, arrays["aff"].unsqueeze(0), **options)[0, :, 0], arrays["trans"])


def test_pairs_and_matrix_hold_the_same_affinities():
    features = torch.randn(2, 6, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = 3
    matrix = affinity_matrix(features, radius=radius)
    assert torch.equal(matrix, matrix.transpose(1, 2))
    flat = features.flatten(2)
    wanted = torch.exp(-(flat[:, :, :, None] - flat[:, :, None, :]).abs().mean(dim=1))
    rows, columns = torch.arange(99) // 11, torch.arange(99) % 11
    near = (rows[:, None] - rows).square() + (columns[:, None] - columns).square() < radius * radius
    torch.testing.assert_close(matrix, wanted * near)
    here, there = pairs_of_cells(torch.arange(99).view(9, 11), radius=radius)
    torch.testing.assert_close(pair_affinity(features, radius=radius), matrix[:, here.expand_as(there), there])


def test_a_map_narrower_than_the_radius_walks_but_cannot_train():
    features = torch.rand(1, 4, 3, 2)
    matrix = affinity_matrix(features, radius=5)
    maps = torch.rand(1, 2, 3, 2)
    torch.testing.assert_close(random_walk(maps, matrix).sum(dim=1).isfinite().all(), torch.tensor(True))
    with pytest.raises(InputError, match=r"3 x 2 cells holds no pairs within radius 5: it needs at least 5 x 9"):
        pair_affinity(features, radius=5)


def test_the_walk_is_not_done_in_low_precision(tensors):
    arrays = tensors("random_walk")
    maps = arrays["cam"].float().view(1, -1, 1, arrays["cam"].shape[1])
    options = {"power": float(arrays["beta"]), "doublings": int(arrays["logt"])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        walked = random_walk(maps, arrays["aff"].float().unsqueeze(0), **options)
    torch.testing.assert_close(walked[0, :, 0].double(), arrays["out"], rtol=1e-4, atol=1e-5)
