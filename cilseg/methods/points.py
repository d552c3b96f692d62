"""MiB on points or scribbles: a few labelled pixels per image, the others are "old, background, or a tagged class"."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.losses.partial import partial_loss
from cilseg.losses.unbiased import unbiased_kd
from cilseg.methods.base import Method, Options, Supervision
from cilseg.train.dataset import Batch


class PartialOptions(Options):
    """Weight of the distillation."""

    kd_weight: float = Field(default=10.0, ge=0)


class MibPoints(Method):
    """Marginal likelihood of what an annotation leaves open, plus MiB's distillation; our reconstruction."""

    name = "mib-points"
    supervision: ClassVar[Supervision] = "points"
    idea = "labelled points, and elsewhere: old, background, or a class tagged in the image"
    paper = "after Cermelli et al., arXiv 2201.13338 (loss reconstructed here)"
    options_type = PartialOptions
    options: PartialOptions
    background_init = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        logits, old = self.at_pixels(found.logits, batch), self.at_pixels(found.old_logits, batch)
        in_image = F.pad(batch["tags"] != 0, (1, 0))  # an unknown class may be there; a column for background
        return {
            "partial": partial_loss(logits, batch["mask"], n_old=self.n_old, class_in_image=in_image).total,
            "kd": self.options.kd_weight * unbiased_kd(logits, old),
        }


class MibScribbles(MibPoints):
    """The same with scribbles, which may also mark background."""

    name = "mib-scribbles"
    supervision = "scribbles"
    idea = "scribbled pixels, and elsewhere: old, background, or a class tagged in the image"
