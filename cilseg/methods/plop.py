"""PLOP: pooled features of several layers stay as they were, sure answers of the old model become labels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cilseg.losses.entropy_gate import EntropyThresholds, gated_labels, weighted_cross_entropy
from cilseg.losses.pod import fold_new_into_background, local_pod_loss
from cilseg.methods.base import Method, Options, Stage
from cilseg.train.dataset import Batch, TrainingSet, epoch_batches


class PlopOptions(Options):
    """Pseudo-labels and distillation."""

    gate: Literal["paper", "reference"] = "paper"
    """When the old model is sure enough: below the median entropy of the class, or as the released code computes it."""
    floor: float = Field(default=0.001, ge=0)
    """Lowest threshold of the ``reference`` gate; 0.5 switches it off (disjoint)."""
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
        self.thresholds = EntropyThresholds(
            n_old=self.n_old, n_classes=self.model.n_classes, form=opt.gate, floor=opt.floor
        )
        old = self.old_model.to(stage.device).eval()
        with torch.no_grad(), stage.autocast():
            for batch in epoch_batches(data, 0, batch_size=8):
                image, mask = batch["image"].to(stage.device), batch["mask"].to(stage.device)
                height, width = image.shape[-2:]
                self.thresholds.update(old.upsample(old(image).float(), height, width), mask)
        return data

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        x = self.model.normalise(batch["image"])
        taps, body = self.model.backbone.pod_taps(x)
        head = self.model.head(body)
        logits = self.model.classifier(head)
        with torch.no_grad():
            old_taps, old_body = self.old_model.backbone.pod_taps(x)
            old_head = self.old_model.head(old_body)
            old_logits = self.old_model.classifier(old_head)
        mask, full = batch["mask"], self.at_pixels(logits, batch)
        labels, weight = gated_labels(self.at_pixels(old_logits, batch), mask, self.thresholds)
        folded = fold_new_into_background(logits, n_old=self.n_old)
        opt = self.options
        return {
            "ce": weighted_cross_entropy(full, labels, weight),
            "pod": local_pod_loss(
                [*taps, head, folded],
                [*old_taps, old_head, old_logits],
                factors=[*[opt.pod_weight] * (len(taps) + 1), opt.pod_logits_weight],
                n_old=self.n_old,
                n_new=self.model.n_classes - self.n_old,
            ),
        }
