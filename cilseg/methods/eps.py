"""EPS: class maps that add up to a saliency map."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.errors import InputError
from cilseg.losses.eps import eps_losses
from cilseg.losses.label_making import cam_labels, merge_passes
from cilseg.methods.base import BUILTIN, Stage, StepContext
from cilseg.methods.two_stage import TwoStage, TwoStageOptions, WeakNetwork
from cilseg.models.saliency import boundary_saliency
from cilseg.models.weak import EpsHead
from cilseg.train.dataset import Batch, TrainingSet, as_batch


class EpsOptions(TwoStageOptions):
    """How class maps and saliency are compared, and how maps become labels."""

    threshold: float = Field(default=0.2, gt=0, lt=1)
    """Score of the background: where no class exceeds it, a pixel is background."""

    tau: float = Field(default=0.4, ge=0, le=1)
    """Overlap with the salient region from which a tagged class belongs to the foreground."""
    lam: float = Field(default=0.5, ge=0, le=1)
    """Share of the foreground in the predicted saliency; 0.5 for VOC, 0.9 for COCO."""


class EpsNetwork(WeakNetwork):
    """Maps of classes and background from one convolution, compared with saliency and tags."""

    options: EpsOptions

    def build_decoder(self) -> EpsHead:
        return EpsHead(self.model.backbone.channels, n_foreground=self.n_new)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        maps = self.decoder(self.model.backbone(self.model.normalise(batch["image"])))
        saliency = batch["saliency"].float() / 255
        return eps_losses(maps, saliency, tags=self.new_tags(batch), tau=self.options.tau, lam=self.options.lam)

    def class_maps(self, image: Tensor) -> Tensor:
        maps: Tensor = self.decoder(self.model.backbone(self.model.normalise(image)))
        return maps.float().softmax(dim=1)[:, :-1]

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        size_hw = (image.shape[-2], image.shape[-1])
        maps = merge_passes(passes, size_hw=size_hw, mirrored=self.mirrored(passes))
        return cam_labels(maps, tags[None], background=self.options.threshold)[0]


class Eps(TwoStage):
    """Saliency says where objects are, the tags what they are."""

    name = "eps"
    idea = "class maps that add up to a saliency map, as hard labels"
    paper = "Lee et al., CVPR 2021; adapted in Cermelli et al., CVPR 2022"
    needs = ("saliency",)
    options_type = EpsOptions
    weak_type = EpsNetwork

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        if self.inputs.saliency is None:
            raise InputError(
                "Method 'eps' needs saliency maps: give --saliency DIR, or --saliency builtin to make them from the "
                "parent's own features. Without them use cam or wilson."
            )

    def weak_data(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        if self.inputs.saliency != BUILTIN:
            return data.changed(read_saliency=self.inputs.saliency)
        model = self.old_model.to(stage.device).eval()
        maps = []
        for index in range(data.size):
            image = as_batch(data.read_image(index), stage.device)
            with torch.no_grad(), stage.autocast():
                features = model.backbone(model.normalise(image)).float()
            saliency = boundary_saliency(features, image.float())[:, None]
            full = F.interpolate(saliency, size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
            maps.append((255 * full.clamp(0, 1)).round().to(torch.uint8).cpu().numpy())
        return data.changed(read_saliency=partial(_entry, maps))


def _entry(maps: list[npt.NDArray[np.uint8]], index: int) -> npt.NDArray[np.uint8]:
    return maps[index]
