"""MiB: the background of a step hides old classes, that of the old model hides new ones."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from cilseg.losses.unbiased import unbiased_ce, unbiased_kd
from cilseg.methods.base import Method, Options
from cilseg.train.dataset import Batch


class MibOptions(Options):
    """MiB's one choice."""

    kd_weight: float | None = Field(default=None, ge=0)
    """Weight of the distillation; null: 10, or 100 when the step brings a single class (as the authors did)."""


class Mib(Method):
    """Cross-entropy in which background is "background or old", distillation in which it is "background or new"."""

    name = "mib"
    supervision = "masks"
    idea = "background counts as old in the loss and as new in the distillation; new classifiers start as background"
    paper = "Cermelli et al., CVPR 2020"
    options_type = MibOptions
    options: MibOptions
    background_init = True

    @property
    def kd_weight(self) -> float:
        if self.options.kd_weight is not None:
            return self.options.kd_weight
        return 100.0 if self.model.n_classes - self.n_old == 1 else 10.0

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        return {
            "ce": unbiased_ce(logits, batch["mask"], n_old=self.n_old),
            "kd": self.kd_weight * unbiased_kd(logits, old),
        }
