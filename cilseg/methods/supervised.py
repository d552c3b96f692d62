"""Training on masks: one sigmoid per class (WILSON, CVPR 2022, eq. 1), or soft-max for cosine classifiers (PIFS)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cilseg.losses.pixel import bce_with_ignore, cross_entropy
from cilseg.methods.base import Method, Stage
from cilseg.methods.prototypes import measure_prototypes, save_prototypes
from cilseg.train.dataset import Batch, TrainingSet


class Supervised(Method):
    """Per-class binary cross-entropy on logits upsampled to the image, mean over all pixels.

    A network with a cosine classifier learns by soft-max cross-entropy instead. Leaves the prototypes of its classes
    for methods of later steps that need them.
    """

    name = "base"
    supervision = "masks"
    idea = "per-class BCE on masks; the step that everything else starts from"
    paper = "Cermelli et al., CVPR 2022, eq. 1"

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        logits = self.at_pixels(self.model(batch["image"]), batch)
        if self.model.architecture.classifier == "cosine":
            return {"seg": cross_entropy(logits, batch["mask"])}
        return {"seg": bce_with_ignore(logits, batch["mask"]).mean()}

    def finish(self, data: TrainingSet, stage: Stage) -> None:
        if not self._old:  # of bases alone: joint training and fine-tuning are ends
            self.prototypes = measure_prototypes(self.model, data, stage)

    def keep(self, folder: Path) -> None:
        if not self._old:
            save_prototypes(self.prototypes, folder)
