"""PIFS: a few annotated images; imprinted cosine classifiers, tuned with their own copy as the teacher."""

from __future__ import annotations

import copy

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cilseg.errors import InputError
from cilseg.losses.few_shot import image_prototypes, imprinted_weights, pifs_losses
from cilseg.methods.base import Method, Options, Stage, StepContext
from cilseg.models.batch_renorm import renormalise
from cilseg.train.dataset import Batch, TrainingSet, as_batch


class PifsOptions(Options):
    """Weight of the distillation."""

    kd_weight: float = Field(default=10.0, ge=0)


class Pifs(Method):
    """New classifiers are imprinted; then everything is tuned with batch renormalisation and distillation.

    Masks show old classes too, as they are in the few images.
    """

    name = "pifs"
    supervision = "shots"
    idea = "a few masks: imprinted cosine classifiers, distilled from their own copy"
    paper = "Cermelli et al., BMVC 2021"
    options_type = PifsOptions
    options: PifsOptions
    sees_old_masks = True

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        if self.model.architecture.classifier != "cosine":
            raise InputError(
                "Method 'pifs' imprints a cosine classifier, and the parent has a linear one. Train the base with "
                "--set model.classifier=cosine; from this parent, mib or wilson can learn."
            )

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        """Imprint the new classes from whole images, copy the result as the teacher, switch to renormalisation."""
        assert data.read_mask is not None
        model = self.model.to(stage.device).eval()
        new = list(range(self.n_old, model.n_classes))
        total = torch.zeros(len(new), model.architecture.head_channels, device=stage.device)
        for index in range(data.size):
            image = as_batch(data.read_image(index), stage.device)
            mask = torch.from_numpy(np.array(data.read_mask(index)))[None].to(stage.device)
            with torch.no_grad(), stage.autocast():
                features = model.head(model.backbone(model.normalise(image)))
            total += image_prototypes(features, mask, class_ids=new)[0]
        with torch.no_grad():
            model.classifier.steps[-1].get_parameter("weight").copy_(imprinted_weights(total)[:, :, None, None])
        self._teacher = [copy.deepcopy(model).eval().requires_grad_(False)]  # outside the module tree
        renormalise(model)
        return data

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        logits = self.at_pixels(self.model(batch["image"]), batch)
        with torch.no_grad():
            teacher = self.at_pixels(self._teacher[0](batch["image"]), batch)
        return pifs_losses(logits, batch["mask"], teacher_logits=teacher, kd_weight=self.options.kd_weight)

    def finish(self, data: TrainingSet, stage: Stage) -> None:  # noqa: ARG002
        plain = self.model.extended(0)  # ordinary batch norms again
        self.model = plain
