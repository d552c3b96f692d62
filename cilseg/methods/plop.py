"""PLOP: pooled features of several layers stay as they were, sure answers of the old model become labels."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cilseg.losses.entropy_gate import GateForm, ThresholdPass, gated_labels, weighted_cross_entropy
from cilseg.losses.pod import pod_loss
from cilseg.methods.base import Method, Options, Stage
from cilseg.train.dataset import Batch, TrainingSet, epoch_batches

_MOST_SCORES = 20_000_000
"""Entropies kept per class for the median (80 MB); more are sampled."""


class PlopOptions(Options):
    """Pseudo-labels and distillation."""

    gate: GateForm = "paper"
    """When the old model is sure enough: below the median entropy of the class, or as the released code computes it."""
    floor: float | None = Field(default=None, ge=0)
    """Lowest threshold; null: 0 for the ``paper`` gate, 0.001 for the other (0.5 switches it off, as for disjoint)."""
    pod_weight: float = Field(default=0.01, ge=0)
    """Factor of the pooled distillation of stages and head."""
    pod_logits_weight: float = Field(default=0.0005, ge=0)
    """The same for the logits; 0.0001 for disjoint steps in MiBv2."""


class Plop(Method):
    """Local POD on stages, head and logits; background pixels take the old model's label where it is sure."""

    name = "plop"
    supervision = "masks"
    idea = "multi-scale pooled features stay near the old ones; sure old answers label the background"
    paper = "Douillard et al., CVPR 2021"
    options_type = PlopOptions
    options: PlopOptions
    background_init = True

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        """Measure the entropy thresholds of the old model in one pass over the crops of the first epoch."""
        opt = self.options
        measured = ThresholdPass(
            self.model.n_classes,
            form=opt.gate,
            floor=opt.floor,
            max_per_class=_MOST_SCORES,
            seed=stage.seed,
        )
        old = self.old_model.to(stage.device).eval()
        with torch.no_grad(), stage.autocast():
            for batch in epoch_batches(data, 0, batch_size=min(8, data.size)):
                logits = self.at_pixels(old(batch["image"].to(stage.device)), batch)
                measured.update(logits, batch["mask"].to(stage.device))
        self.thresholds = measured.thresholds()
        return data

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        opt = self.options
        x = self.model.normalise(batch["image"])
        taps, body = self.model.backbone.pod_taps(x)
        head = self.model.head(body)
        logits = self.model.classifier(head)
        with torch.no_grad():
            old_taps, old_body = self.old_model.backbone.pod_taps(x)
            old_head = self.old_model.head(old_body)
            old_logits = self.old_model.classifier(old_head)
        gated = gated_labels(
            self.at_pixels(old_logits, batch),
            batch["mask"],
            thresholds=self.thresholds,
            n_classes=self.model.n_classes,
            form=opt.gate,
        )
        full = self.at_pixels(logits, batch)
        return {
            "ce": weighted_cross_entropy(full, gated.labels, image_weight=gated.image_weight),
            "pod": pod_loss(
                [*taps, head],
                [*old_taps, old_head],
                logits=logits,
                old_logits=old_logits,
                feature_factor=opt.pod_weight,
                logit_factor=opt.pod_logits_weight,
            ),
        }
