"""Plain distillation: LwF, LwF-MC and ILT, the siblings that the papers compare with."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from cilseg.losses.distillation import ilt_losses, lwf_losses, lwf_mc_losses
from cilseg.methods.base import Method, Options
from cilseg.train.dataset import Batch


class LwfOptions(Options):
    """Weight of the output distillation."""

    kd_weight: float = Field(default=100.0, ge=0)


class Lwf(Method):
    """Cross-entropy on the new masks plus soft-max distillation of the old channels."""

    name = "lwf"
    supervision = "masks"
    idea = "the old channels keep the old model's soft-max"
    paper = "Li and Hoiem, ECCV 2016, as in Cermelli et al., CVPR 2020"
    options_type = LwfOptions
    options: LwfOptions

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        return lwf_losses(logits, batch["mask"], old_logits=old, kd_weight=self.options.kd_weight)


class LwfMcOptions(Options):
    """Weight of the distillation, before the factor of the number of old channels."""

    kd_weight: float = Field(default=10.0, ge=0)


class LwfMc(Method):
    """One binary classifier per class; the old ones keep the old model's sigmoid."""

    name = "lwf-mc"
    supervision = "masks"
    idea = "binary classifiers; the old channels keep the old model's sigmoid"
    paper = "Rebuffi et al., CVPR 2017, as in Cermelli et al., CVPR 2020"
    options_type = LwfMcOptions
    options: LwfMcOptions

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        return lwf_mc_losses(logits, batch["mask"], old_logits=old, weight=self.options.kd_weight)


class IltOptions(Options):
    """Weights of the two distillations."""

    kd_weight: float = Field(default=100.0, ge=0)
    body_weight: float = Field(default=100.0, ge=0)


class Ilt(Method):
    """LwF plus distillation of the body features."""

    name = "ilt"
    supervision = "masks"
    idea = "LwF, and the body features stay near the old ones"
    paper = "Michieli and Zanuttigh, ICCV workshops 2019, as in Cermelli et al., CVPR 2020"
    options_type = IltOptions
    options: IltOptions

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        return ilt_losses(
            logits,
            batch["mask"],
            old_logits=old,
            body=found.body,
            old_body=found.old_body,
            kd_weight=self.options.kd_weight,
            body_weight=self.options.body_weight,
        )
