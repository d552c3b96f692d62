"""CAM: class activation maps as hard pseudo-labels."""

from __future__ import annotations

from torch import Tensor

from cilseg.losses.cam import cam_loss
from cilseg.losses.label_making import cam_labels, merge_passes
from cilseg.methods.two_stage import TwoStage, WeakNetwork
from cilseg.models.weak import CamHead
from cilseg.train.dataset import Batch


class CamNetwork(WeakNetwork):
    """A classifier whose maps are read before the mean that makes them scores."""

    def build_decoder(self) -> CamHead:
        return CamHead(self.model.backbone.channels, n_foreground=self.n_new)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        body = self.model.backbone(self.model.normalise(batch["image"]))
        return {"cls": cam_loss(self.decoder(body), self.new_tags(batch))}

    def class_maps(self, image: Tensor) -> Tensor:
        maps: Tensor = self.decoder(self.model.backbone(self.model.normalise(image)))
        return maps.relu()

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        size_hw = (image.shape[-2], image.shape[-1])
        maps = merge_passes(passes, size_hw=size_hw, mirrored=self.mirrored(passes))
        return cam_labels(maps, tags[None], background=self.options.threshold)[0]


class Cam(TwoStage):
    """Maps of an image classifier, thresholded."""

    name = "cam"
    idea = "maps of an image classifier as hard labels"
    paper = "Zhou et al., CVPR 2016; adapted in Cermelli et al., CVPR 2022"
    weak_type = CamNetwork
