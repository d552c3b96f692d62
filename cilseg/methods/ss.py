"""SS: a single-stage network that learns from its own refined and thresholded masks."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from cilseg.config import OptimiserConfig
from cilseg.losses.label_making import merge_passes, single_stage_labels
from cilseg.losses.single_stage import single_stage_losses
from cilseg.methods.two_stage import TwoStage, TwoStageOptions, WeakNetwork
from cilseg.models.weak import SsDecoder
from cilseg.train.dataset import Batch


class SsOptions(TwoStageOptions):
    """How the masks are made."""

    weak: OptimiserConfig = OptimiserConfig(
        epochs=24, lr_body=0.001, lr_head=0.01, weight_decay=5e-4, crop_scale=(0.9, 1.0)
    )
    warm_up_epochs: int = Field(default=5, ge=0)
    """Epochs of stage 1 without the loss on masks."""
    background_power: float = Field(default=3.0, gt=0)
    """Power of the background's score before the arg-max; larger means less background."""


class SsNetwork(WeakNetwork):
    """Decoder with shallow features, global cue injection and a stochastic gate."""

    options: SsOptions

    def build_decoder(self) -> SsDecoder:
        backbone = self.model.backbone
        shallow = backbone.level_strides.index(4)
        self.shallow = shallow
        return SsDecoder(backbone.channels, shallow_channels=backbone.level_channels[shallow], n_foreground=self.n_new)

    def _logits(self, image: Tensor) -> Tensor:
        levels = self.model.backbone.stage_features(self.model.normalise(image))
        logits: Tensor = self.decoder(levels[-1], levels[self.shallow])
        return logits

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return single_stage_losses(
            self._logits(batch["image"]),
            batch["image"].float(),
            tags=self.new_tags(batch),
            warm_up=epoch < self.options.warm_up_epochs,
        )

    def class_maps(self, image: Tensor) -> Tensor:
        return self._logits(image).float().softmax(dim=1)

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        size_hw = (image.shape[-2], image.shape[-1])
        maps = merge_passes(passes, size_hw=size_hw, mirrored=self.mirrored(passes))
        return single_stage_labels(maps, tags[None], background_power=self.options.background_power)[0]


class Ss(TwoStage):
    """Masks that teach themselves, refined along the image's edges."""

    name = "ss"
    idea = "a network that learns from its own refined masks, its answers as hard labels"
    paper = "Araslanov and Roth, CVPR 2020; adapted in Cermelli et al., CVPR 2022"
    options_type = SsOptions
    weak_type = SsNetwork
