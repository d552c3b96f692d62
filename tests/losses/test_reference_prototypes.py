"""SDR's prototypes and losses against brute force, and what the published code computes instead."""

from __future__ import annotations

import pytest
import torch

from cilseg.losses.prototypes import (
    attraction_loss,
    hidden_old_labels,
    labels_at,
    matching_loss,
    repulsion_loss,
    sparsity_loss,
    update_prototypes,
)
from cilseg.losses.unbiased import unbiased_ce, unbiased_kd


def scrambled(features, chosen):
    """The published selection: a boolean index into (B, D, h, w) without moving the channels last."""
    return features[chosen.unsqueeze(1).expand_as(features)]


def reference_sum(features, chosen):
    return scrambled(features, chosen).view(features.shape[1], -1).sum(dim=1)


def reference_attraction(features, labels, prototypes):
    present = [c for c in labels.unique().tolist() if c != 255]
    loss = features.new_zeros(())
    for c in present:
        picked = scrambled(features, labels == c).view(features.shape[1], -1)
        loss = (loss + ((picked - prototypes[c].unsqueeze(1)) ** 2).mean()) / len(present)
    return loss


def reference_repulsion(features, labels):
    present = [c for c in labels.unique().tolist() if c != 255]
    means = [scrambled(features, labels == c).view(features.shape[1], -1).mean(dim=1) for c in present]
    pairs = [1 / (a - b).norm() for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
    return torch.stack(pairs).mean()


def reference_matching(features, hidden, prototypes):
    present = [c for c in hidden.unique().tolist() if c]
    means = {c: scrambled(features, hidden == c).view(-1, features.shape[1]).mean(dim=0) for c in present}
    return torch.stack([((means[c] - prototypes[c]) ** 2).mean() for c in present]).mean()


def reference_sparsity(features, labels):
    largest = torch.zeros_like(labels, dtype=features.dtype)
    for c in labels.unique().tolist():
        chosen = labels == c
        largest = torch.where(chosen, scrambled(features, chosen).max(), largest)
    normalised = features / (largest.unsqueeze(1) + 1e-15)
    return (normalised.exp().sum(dim=1) / (normalised.sum(dim=1) + 1e-15)).mean()


@pytest.mark.parametrize("case", ["disjoint_step0", "overlap_step0", "step1"])
def test_running_prototypes(tensors, agrees, case):
    stored = tensors("pixel_sdr_prototypes")
    a = {key.removeprefix(case + "_"): value for key, value in stored.items() if key.startswith(case)}
    means, counts, wrong = a["proto0"], a["count0"], a["proto0"].clone()
    for i, features in enumerate(a["feat"]):
        labels = labels_at(a["labels"][i], tuple(features.shape[-2:]))
        assert torch.equal(labels, a["labels_down"][i].long())
        for c in labels.unique().tolist():
            if c != 255 and (c or case == "disjoint_step0"):
                n, m = counts[c], (labels == c).sum()
                wrong[c] = (reference_sum(features, labels == c) + n * wrong[c]) / (n + m)
        means, counts = update_prototypes(
            means, counts, features=features, labels=labels, skip_background=case != "disjoint_step0"
        )
        agrees(means, a["proto_paper"][i])
        agrees(wrong, a["proto_reference"][i])
        agrees(counts, a["count"][i])


@pytest.mark.parametrize(
    ("name", "form"), [(n, f) for n in ("attract", "repel", "match") for f in ("paper", "reference")]
)
def test_losses(tensors, agrees, value_and_gradient, name, form):
    a = tensors("pixel_sdr_losses")
    labels, proto = a["labels_down"].long(), a["proto"]
    hidden = hidden_old_labels(a["old_logits"], labels)
    assert torch.equal(hidden, a["match_pseudo_labels_down"].long())
    assert torch.equal(labels_at(a["labels"], tuple(labels.shape[-2:])), labels)
    function = {
        "attract_paper": lambda f: attraction_loss(f, labels, proto),
        "attract_reference": lambda f: reference_attraction(f, labels, proto),
        "repel_paper": lambda f: repulsion_loss(f, labels, n_classes=len(proto)),
        "repel_reference": lambda f: reference_repulsion(f, labels),
        "match_paper": lambda f: matching_loss(f, hidden, proto),
        "match_reference": lambda f: reference_matching(f, hidden, proto),
    }[f"{name}_{form}"]
    value, gradient = value_and_gradient(function, a["feat"])
    agrees(value, a[f"{name}_{form}"])
    agrees(gradient, a[f"grad_{name}_{form}"])


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_attraction_to_a_zero_background(tensors, agrees, value_and_gradient, form):
    a = tensors("pixel_sdr_losses")
    function = attraction_loss if form == "paper" else reference_attraction
    value, gradient = value_and_gradient(lambda f: function(f, a["labels_down"].long(), a["proto_zero_bg"]), a["feat"])
    agrees(value, a[f"attract_{form}_zero_bg"])
    agrees(gradient, a[f"grad_attract_{form}_zero_bg"])


def test_background_can_be_left_out_of_the_attraction(tensors, value_and_gradient):
    a = tensors("pixel_sdr_losses")
    labels = a["labels_down"].long()
    _, gradient = value_and_gradient(
        lambda f: attraction_loss(f, labels, a["proto_zero_bg"], skip_background=True), a["feat"]
    )
    background = (labels == 0).unsqueeze(1).expand_as(gradient)
    assert (gradient[background] == 0).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("suffix", ["", "_dead"])
def test_sparsity(tensors, agrees, value_and_gradient, suffix):
    a = tensors("pixel_sdr_losses")
    labels, features = a["labels_down"].long(), a[f"feat{suffix}"]
    value, gradient = value_and_gradient(lambda f: sparsity_loss(f, labels), features)
    agrees(value, a[f"sparse_fixed_own{suffix}"])
    agrees(gradient, a[f"grad_sparse_fixed_own{suffix}"])
    value, gradient = value_and_gradient(lambda f: reference_sparsity(f, labels), features)
    agrees(value, a[f"sparse_reference{suffix}"])
    if not suffix:
        agrees(gradient, a["grad_sparse_reference"])


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_total(tensors, agrees, value_and_gradient, form):
    a = tensors("pixel_sdr_losses")
    labels, proto, n_old = a["labels_down"].long(), a["proto"], int(a["n_old"])
    hidden = hidden_old_labels(a["old_logits"], labels)

    def output(z):
        ce, distilled = unbiased_ce(z, a["labels"], n_old=n_old), unbiased_kd(z, a["old_logits"])
        agrees(ce, a["loss_uce"])
        agrees(distilled, a["loss_ukd"])
        return ce + 100 * distilled

    def latent(f):
        if form == "paper":
            attract, repel = attraction_loss(f, labels, proto), repulsion_loss(f, labels, n_classes=len(proto))
            match, sparse = matching_loss(f, hidden, proto), sparsity_loss(f, labels)
        else:
            attract, repel = reference_attraction(f, labels, proto), reference_repulsion(f, labels)
            match, sparse = reference_matching(f, hidden, proto), reference_sparsity(f, labels)
        return 1e-3 * attract + 1e-3 * repel + 1e-2 * match + 1e-3 * sparse

    value, gradient = value_and_gradient(latent, a["feat"])
    agrees(gradient, a[f"grad_feat_total_{form}"])
    of_logits, of_logits_gradient = value_and_gradient(output, a["new_logits"])
    agrees(value + of_logits, a[f"total_{form}"])
    agrees(of_logits_gradient, a["grad_new_logits_total"], tolerance=1e-6)


def test_nothing_to_compare_gives_zeros(tensors):
    a = tensors("pixel_sdr_losses")
    void = torch.full_like(a["labels_down"].long(), 255)
    assert attraction_loss(a["feat"], void, a["proto"]) == 0
    assert repulsion_loss(a["feat"], torch.zeros_like(void), n_classes=7) == 0
    assert matching_loss(a["feat"], torch.zeros_like(void), a["proto"]) == 0
    assert sparsity_loss(a["feat"], void) == 0
