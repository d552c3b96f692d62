"""SEAM: two scales of an image must agree on their class maps, which spread over pixels that look alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.config import OptimiserConfig
from cilseg.losses.affinity import affinity_loss, affinity_targets, pair_affinity
from cilseg.losses.label_making import merge_passes, over_range, seam_labels, sure_labels
from cilseg.losses.seam import seam_losses
from cilseg.methods.base import Stage
from cilseg.methods.two_stage import Labeller, TwoStage, TwoStageOptions, WeakNetwork
from cilseg.models.affinity import walk_maps, walked_labels
from cilseg.models.weak import AffinityHead, SeamHead
from cilseg.train.dataset import Batch, TrainingSet


class SeamOptions(TwoStageOptions):
    """How the maps are made."""

    weak: OptimiserConfig = OptimiserConfig(epochs=8, lr_body=0.001, lr_head=0.01, weight_decay=5e-4)
    threshold: float = Field(default=0.26, gt=0, lt=1)
    """Score of the background: where no class exceeds it, a pixel is background."""
    small_scale: float = Field(default=0.3, gt=0, lt=1)
    """Size of the second view."""
    random_walk: bool = False
    """Train AffinityNet on the sure pixels of the maps and let the maps walk along its affinities (Ahn and Kwak)."""
    affinity: OptimiserConfig = OptimiserConfig(epochs=8, lr_body=0.001, lr_head=0.01, weight_decay=5e-4)
    """Training of AffinityNet."""
    radius: int = Field(default=5, ge=2)
    """Pairs of cells closer than this have an affinity."""


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

    def merged(self, passes: list[Tensor], image: Tensor) -> Tensor:
        """Merge the maps of all passes at the size of the image, (1, n_new, H, W)."""
        size_hw = (image.shape[-2], image.shape[-1])
        return merge_passes(passes, size_hw=size_hw, mirrored=self.mirrored(passes))

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        return seam_labels(self.merged(passes, image), tags[None], background=self.options.threshold)[0]

    def scores(self, image: Tensor, tags: Tensor) -> Tensor:
        """Return the maps of tagged classes over their range, (1, n_new, H, W): 0 .. 1, below 0 where one is flat."""
        maps = over_range(self.merged(self.passes(image, scales=self.options.scales), image))
        return maps * (tags > 0)[None, :, None, None]

    def sure(self, image: Tensor, tags: Tensor) -> npt.NDArray[np.uint8]:
        """Label what is sure, void elsewhere."""
        return self.channel_ids(sure_labels(self.scores(image, tags))[0])


class AffinityNetwork(WeakNetwork):
    """AffinityNet on the parent's features: how alike two nearby cells are."""

    options: SeamOptions

    def build_decoder(self) -> AffinityHead:
        first, second, last = self.model.backbone.level_channels[-3:]
        return AffinityHead((first, second, last))

    def features(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) on 0-255 to features (B, D, h, w)."""
        found: Tensor = self.decoder(self.model.backbone.stage_features(self.model.normalise(image))[-3:])
        return found

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        features = self.features(batch["image"])
        small = F.interpolate(batch["mask"][:, None].float(), size=features.shape[-2:], mode="nearest")[:, 0]
        radius = self.options.radius
        targets = affinity_targets(small.long(), radius=radius)
        return {"affinity": affinity_loss(pair_affinity(features, radius=radius), targets)}

    @torch.no_grad()
    def walk(self, maps: Tensor, image: Tensor) -> Tensor:
        """Let maps (1, n_new, H, W) and their background walk; return labels (H, W), k the k-th new class."""
        walked = walk_maps(maps, self.features(image), radius=self.options.radius)
        return walked_labels(walked, size_hw=(maps.shape[-2], maps.shape[-1]))[0]


class Seam(TwoStage):
    """Equivariant class maps, spread by pixel correlation, with AffinityNet as an option."""

    name = "seam"
    idea = "class maps that agree between two scales and spread over similar pixels, as hard labels"
    paper = "Wang et al., CVPR 2020; adapted in Cermelli et al., CVPR 2022"
    options_type = SeamOptions
    options: SeamOptions
    weak_type = SeamNetwork

    def labeller(self, weak: WeakNetwork, data: TrainingSet, stage: Stage) -> Labeller:
        assert isinstance(weak, SeamNetwork)
        if not self.options.random_walk:
            return super().labeller(weak, data, stage)
        sure = data.changed(read_mask=self.write_labels("sure_labels", weak.sure, data, stage))
        affinity = AffinityNetwork(self.old_model, self.options, n_new=weak.n_new)
        stage.fit("affinity", affinity, sure, self.options.affinity)
        affinity.to(stage.device).eval()

        def label(image: Tensor, tags: Tensor) -> npt.NDArray[np.uint8]:
            return weak.channel_ids(affinity.walk(weak.scores(image, tags), image))

        return label
