"""SDR: prototypes of the classes are matched, features attracted, classes repelled, activations made sparse."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from cilseg.errors import InputError
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
from cilseg.methods.base import Method, Options, StepContext
from cilseg.methods.prototypes import Prototypes, load_prototypes, save_prototypes
from cilseg.train.dataset import Batch


class SdrOptions(Options):
    """Weights of the losses; the defaults are those of the released ``--method SDR``."""

    kd_weight: float = Field(default=100.0, ge=0)
    matching: float = Field(default=0.01, ge=0)
    attraction: float = Field(default=0.001, ge=0)
    repulsion: float = Field(default=0.001, ge=0)
    sparsity: float = Field(default=0.001, ge=0)


class Sdr(Method):
    """MiB's two losses, and losses on the body features around class prototypes."""

    name = "sdr"
    supervision = "masks"
    idea = "features stay near class prototypes, classes apart, activations sparse; with MiB's losses"
    paper = "Michieli and Zanuttigh, CVPR 2021"
    needs = ("prototypes",)
    options_type = SdrOptions
    options: SdrOptions
    means: Tensor
    counts: Tensor

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        kept = load_prototypes(self.inputs.kept)
        known = 0 if kept is None else len(kept.counts)
        if kept is None or known != self.n_old or kept.means.shape[1] != self.model.backbone.channels:
            raise InputError(
                f"Method 'sdr' needs the prototypes of the parent's {self.n_old} classes, background included, and the "
                f"parent keeps {known}. Base training and sdr leave them, other methods do not: start from such a "
                "version, or use mib or plop."
            )
        n_new = self.model.n_classes - self.n_old
        self.register_buffer("means", torch.cat([kept.means, kept.means.new_zeros(n_new, kept.means.shape[1])]))
        self.register_buffer("counts", torch.cat([kept.counts, kept.counts.new_zeros(n_new)]))

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        size = (found.body.shape[-2], found.body.shape[-1])
        labels = labels_at(batch["mask"], size)
        self.means, self.counts = update_prototypes(
            self.means, self.counts, features=found.body, labels=labels, skip_background=True
        )
        opt = self.options
        return {
            "ce": unbiased_ce(logits, batch["mask"], n_old=self.n_old),
            "kd": opt.kd_weight * unbiased_kd(logits, old),
            "match": opt.matching * matching_loss(found.body, hidden_old_labels(old, labels), self.means),
            "attract": opt.attraction * attraction_loss(found.body, labels, self.means),
            "repel": opt.repulsion * repulsion_loss(found.body, labels, n_classes=self.model.n_classes),
            # Activations are what is to be sparse; a body that ends linearly (MobileNet) has values of both signs.
            "sparse": opt.sparsity * sparsity_loss(found.body.relu(), labels),
        }

    def keep(self, folder: Path) -> None:
        save_prototypes(Prototypes(self.means, self.counts), folder)
