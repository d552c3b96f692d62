"""Targets in which a pixel is one thing: hand-made pixels, each with the answer written down."""

from __future__ import annotations

import math

import torch

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.losses.exclusive import (
    claimed,
    exclusive_loss,
    exclusive_target,
    look_alike_weights,
    with_look_alikes,
)

BACKGROUND, HORSE, COW, SHEEP = range(4)
N_OLD, N_NEW = 2, 2


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pixels(*values: int) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1)


def old_says(*pairs: tuple[float, float]) -> torch.Tensor:
    """Logits (1, 2, 1, W) of an old model that says (background, horse) at each pixel."""
    return torch.tensor([[logit(b), logit(h)] for b, h in pairs]).T.view(1, N_OLD, 1, -1)


def scores(target, pixel: int) -> list[float]:
    return [round(v, 4) for v in target.scores[0, :, 0, pixel].tolist()]


def weights(target, pixel: int) -> list[float]:
    return target.weight[0, :, 0, pixel].tolist()


def test_where_nothing_is_claimed_the_old_model_speaks_and_new_classes_are_absent() -> None:
    target = exclusive_target(old_says((0.3, 0.8)), pixels(UNLABELLED_ID), n_new=N_NEW)
    assert scores(target, 0) == [0.3, 0.8, 0, 0]
    assert weights(target, 0) == [1, 1, 1, 1]


def test_a_claim_takes_from_old_classes_and_background_what_it_holds() -> None:
    sure = torch.tensor([[[204, 255]]], dtype=torch.uint8)  # 0.8 and certain
    target = exclusive_target(old_says((0.1, 0.9), (0.6, 0.1)), pixels(COW, SHEEP), sure, n_new=N_NEW)
    assert scores(target, 0) == [0.1, 0.2, 0.8, 0]
    assert scores(target, 1) == [0, 0, 0, 1]
    inclusive = exclusive_target(old_says((0.1, 0.9)), pixels(COW), sure[..., :1], n_new=N_NEW, exclusive=False)
    assert scores(inclusive, 0) == [0.1, 0.9, 0.8, 0]


def test_void_counts_for_nobody() -> None:
    target = exclusive_target(old_says((0.5, 0.5)), pixels(VOID_ID), n_new=N_NEW)
    assert weights(target, 0) == [0, 0, 0, 0]
    assert exclusive_loss(torch.randn(1, 4, 1, 1), target).item() == 0


def test_drawn_old_classes_are_certain_and_drawn_background_says_nothing_of_new_ones() -> None:
    target = exclusive_target(old_says((0.9, 0.2), (0.2, 0.9)), pixels(HORSE, BACKGROUND), n_new=N_NEW)
    assert scores(target, 0) == [0, 1, 0, 0]
    assert weights(target, 0) == [1, 1, 1, 1]
    assert scores(target, 1)[:2] == [1, 0]
    assert weights(target, 1) == [1, 1, 0, 0]


def test_on_drawn_background_classes_that_nobody_drew_are_the_old_models() -> None:
    # Base: background and horse were drawn; cow came in a later step and is old now, sheep is new.
    old = torch.tensor([logit(0.3), logit(0.1), logit(0.7)]).view(1, 3, 1, 1)
    target = exclusive_target(old, pixels(BACKGROUND), n_new=1, n_drawn=2)
    assert scores(target, 0) == [1, 0, 0.7, 0]
    assert weights(target, 0) == [1, 1, 1, 0]
    drawn = exclusive_target(old, pixels(HORSE), n_new=1, n_drawn=2)
    assert scores(drawn, 0) == [0, 1, 0, 0]


def test_the_loss_is_the_cross_entropy_of_what_is_known_per_pixel() -> None:
    target = exclusive_target(old_says((0.3, 0.8), (0.9, 0.2)), pixels(UNLABELLED_ID, VOID_ID), n_new=N_NEW)
    logits = torch.tensor([0.2, -0.4, 1.0, -2.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2).clone().requires_grad_()
    p = [1 / (1 + math.exp(-v)) for v in (0.2, -0.4, 1.0, -2.0)]
    t = (0.3, 0.8, 0.0, 0.0)
    expected = -sum(a * math.log(b) + (1 - a) * math.log(1 - b) for a, b in zip(t, p, strict=True))
    loss = exclusive_loss(logits, target)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient[0, :, 0, 0], torch.tensor([b - a for a, b in zip(t, p, strict=True)]), atol=1e-6)
    assert gradient[0, :, 0, 1].abs().max() == 0


def test_claims_are_the_labels_times_their_confidence() -> None:
    claim = claimed(pixels(COW, HORSE, SHEEP, VOID_ID), torch.full((1, 1, 4), 51, dtype=torch.uint8), n_old=2, n_new=2)
    assert torch.allclose(claim[0, :, 0], torch.tensor([[0.2, 0, 0, 0], [0, 0, 0.2, 0]]))


def test_an_old_class_seen_more_in_new_objects_than_around_them_is_a_look_alike() -> None:
    claimed_mean = torch.tensor([[0.5, 0.36, 0.09, 0.04], [0.8, 0.0, 0.12, 0.08]])
    everywhere = torch.tensor([[0.8, 0.09, 0.06, 0.05], [0.8, 0.0, 0.08, 0.08]])
    weights = look_alike_weights(claimed_mean, everywhere)
    # Lifts 4, 1.5, 0.8: 1 - 1/4 and 1 - 1/1.5, over the largest; the second makes up a quarter of what the first does,
    # and below half counts twice that. Lifts 0, 1.5, 1: the class is the main one, but no class is near.
    assert torch.allclose(weights[0], torch.tensor([0.0, 1.0, (1 / 3) / 0.75 * 0.5, 0.0]), atol=2e-3)
    assert torch.allclose(weights[1], torch.tensor([0.0, 0.0, (1 / 3) / 0.5, 0.0]), atol=2e-3)


def test_look_alikes_speak_for_the_new_classes_that_are_tagged() -> None:
    # background, horse, person; cow, sheep. Cow looks like a horse; the image shows a cow.
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    scores = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0]).view(1, 5, 1, 1)
    old = torch.tensor([0.1, 0.8, 0.1]).view(1, 3, 1, 1)
    unknown, present, absent = -1.0, 1.0, 0.0
    found = with_look_alikes(scores, old, weights, torch.tensor([unknown, unknown, present, absent]))
    cow = 1 - (1 - 0.1) * (1 - 0.8)
    total = 0.5 + 0.1 + cow
    assert torch.allclose(found.flatten(), torch.tensor([0.5, 0.0, 0.1, cow, 0.0]) / total, atol=1e-6)


def test_where_the_old_class_is_tagged_too_it_speaks_for_itself() -> None:
    weights = torch.tensor([[0.0, 1.0]])
    scores = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    old = torch.tensor([0.1, 0.8]).view(1, 2, 1, 1)
    assert torch.allclose(with_look_alikes(scores, old, weights, torch.tensor([1.0, 1.0])), scores)
    assert torch.allclose(with_look_alikes(scores, old, weights, torch.tensor([-1.0, 0.0])), scores)
