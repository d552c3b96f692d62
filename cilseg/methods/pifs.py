"""PIFS: a few annotated images; imprinted cosine classifiers, tuned with their own copy as the teacher."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cilseg.errors import InputError
from cilseg.losses.few_shot import few_shot_losses, imprint
from cilseg.methods.base import Method, Options, Stage, StepContext
from cilseg.models.batch_renorm import renormalised
from cilseg.train.dataset import Batch, TrainingSet


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
        self._renorm = ExitStack()

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        model = self.model.to(stage.device).eval()
        new = range(self.n_old, model.n_classes)

        def samples():  # type: ignore[no-untyped-def]
            assert data.read_mask is not None
            for index in range(data.size):
                image = torch.from_numpy(np.array(data.read_image(index))).permute(2, 0, 1)[None].to(stage.device)
                with torch.no_grad(), stage.autocast():
                    features = model.head(model.backbone(model.normalise(image)))
                yield features, torch.from_numpy(np.array(data.read_mask(index))).to(stage.device)

        with torch.no_grad():
            weights = imprint(samples(), list(new))
            model.classifier.steps[-1].weight.copy_(weights[:, :, None, None])
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._teacher = [teacher]  # outside the module tree, like the old model
        self._renorm.enter_context(renormalised(model))
        return data

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        logits = self.at_pixels(self.model(batch["image"]), batch)
        with torch.no_grad():
            teacher = self.at_pixels(self._teacher[0](batch["image"]), batch)
        return few_shot_losses(logits, batch["mask"], teacher, kd_weight=self.options.kd_weight)

    def finish(self, data: TrainingSet, stage: Stage) -> None:  # noqa: ARG002
        self._renorm.close()
