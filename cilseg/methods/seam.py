"""SEAM: two scales of an image must agree on their class maps, which spread over pixels that look alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.config import OptimiserConfig
from cilseg.losses.affinity import affinity_losses, affinity_matrix, affinity_targets, pair_affinity, random_walk
from cilseg.losses.label_making import background_of, merge_passes, over_range, seam_labels, sure_labels
from cilseg.losses.seam import seam_losses
from cilseg.methods.base import Stage, StepContext
from cilseg.methods.two_stage import TwoStage, TwoStageOptions, WeakNetwork
from cilseg.models.weak import AffinityHead, SeamHead
from cilseg.train.dataset import Batch, TrainingSet


class SeamOptions(TwoStageOptions):
    """How the maps are made."""

    weak: OptimiserConfig = OptimiserConfig(epochs=8, lr_body=0.001, lr_head=0.01, weight_decay=5e-4)
    threshold: float = Field(default=0.26, gt=0, lt=1)
    small_scale: float = Field(default=0.3, gt=0, lt=1)
    """Size of the second view."""
    random_walk: bool = False
    """Train AffinityNet on the sure pixels of the maps and let them walk along its affinities."""


class SeamNetwork(WeakNetwork):
    """Class maps of two views and their pixel correlation."""

    options: SeamOptions

    def build_decoder(self) -> SeamHead:
        backbone = self.model.backbone
        *_, first, second, _ = range(len(backbone.level_channels))
        self.levels = (first, second)
        return SeamHead(
            backbone.channels,
            level_channels=(backbone.level_channels[first], backbone.level_channels[second]),
            n_foreground=self.n_new,
        )

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.model.normalise(image)
        levels = self.model.backbone.stage_features(x)
        maps: tuple[Tensor, Tensor] = self.decoder(levels[-1], [levels[i] for i in self.levels], x)
        return maps

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        image = batch["image"].float()
        size = (image.shape[-2], image.shape[-1])
        small = F.interpolate(image, scale_factor=self.options.small_scale, mode="bilinear", align_corners=True)
        views = [
            [F.interpolate(m.float(), size=view.shape[-2:], mode="bilinear", align_corners=True) for m in maps]
            for view, maps in ((image, self._maps(image)), (small, self._maps(small)))
        ]
        assert views[0][0].shape[-2:] == size
        return seam_losses(
            maps=views[0][0],
            refined=views[0][1],
            maps_small=views[1][0],
            refined_small=views[1][1],
            tags=self.new_tags(batch),
        )

    def class_maps(self, image: Tensor) -> Tensor:
        return self._maps(image)[1].float()[:, 1:]

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        size_hw = (image.shape[-2], image.shape[-1])
        maps = merge_passes(passes, size_hw=size_hw, mirrored=self.mirrored(passes))
        return seam_labels(maps, tags[None], background=self.options.threshold)[0]


class Seam(TwoStage):
    """Equivariant class maps, spread by pixel correlation, with AffinityNet as an option."""

    name = "seam"
    idea = "class maps that agree between two scales and spread over similar pixels, as hard labels"
    paper = "Wang et al., CVPR 2020; adapted in Cermelli et al., CVPR 2022"
    options_type = SeamOptions
    options: SeamOptions
    weak_type = SeamNetwork
