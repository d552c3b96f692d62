"""Training on masks with one sigmoid per class: the base step of WILSON (CVPR 2022, eq. 1)."""

from __future__ import annotations

from torch import Tensor

from cilseg.losses.pixel import bce_with_ignore
from cilseg.methods.base import Method
from cilseg.train.dataset import Batch


class Supervised(Method):
    """Per-class binary cross-entropy on logits upsampled to the image, mean over all pixels."""

    name = "base"
    supervision = "masks"
    idea = "per-class BCE on masks; the step that everything else starts from"
    paper = "Cermelli et al., CVPR 2022, eq. 1"

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        height, width = batch["image"].shape[-2:]
        logits = self.model.upsample(self.model(batch["image"]).float(), height, width)
        return {"seg": bce_with_ignore(logits, batch["mask"]).mean()}
