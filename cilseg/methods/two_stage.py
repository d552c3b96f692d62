"""The two-stage adaptation of weakly supervised segmentation: hard pseudo-labels first, then a segmentation step.

Stage 1 trains a network on the tags of the step's images and labels those images with it; stage 2 trains the
segmentation model on these labels and the old model's scores (WILSON: Cermelli et al., CVPR 2022, section 4.2 and
eq. 7 and 8 with hard labels). The paper leaves some of stage 1 open; here it starts from the parent's backbone, has one
output per new class, and its labels are masked by the tags, as the labels of training images may be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cilseg.classes import VOID_ID, default_palette
from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.losses.distillation import icarl_loss
from cilseg.methods.base import Method, Options, Stage, StepContext, _group
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import Batch, ImageReader, TrainingSet, as_batch, read_mask_file
from cilseg_serve.images import write_mask

Labeller = Callable[[Tensor, Tensor], npt.NDArray[np.uint8]]

PSEUDO_LABELS = "pseudo_labels"
"""Folder of a run with one PNG per training image: channel ids, 255 undecided."""


class TwoStageOptions(Options):
    """Settings of both stages; those of the segmentation step itself are ``update.optimiser``."""

    weak: OptimiserConfig = OptimiserConfig(epochs=15, lr_body=0.001, lr_head=0.01, weight_decay=5e-4)
    """Stage 1: ``lr_body`` of its backbone, ``lr_head`` of everything on top."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Image scales whose maps are merged, each also flipped."""


class WeakNetwork(Method):
    """What stage 1 trains: a copy of the parent's backbone with a decoder that knows new classes from tags.

    Subclasses define ``build_decoder``, ``forward`` (losses), ``class_maps`` and ``label``.

    Args:
        parent: the old model; its backbone is copied.
        options: of the method.
        n_new: number of new classes.
    """

    def __init__(self, parent: SegmentationModel, options: TwoStageOptions, *, n_new: int) -> None:
        super().__init__(StepContext(parent.extended(0), None, UpdateConfig()))
        self.options = options
        self.model.head.requires_grad_(False)
        self.model.classifier.requires_grad_(False)
        self.first_new, self.n_new = parent.n_classes - 1, n_new
        self.decoder = self.build_decoder()

    def build_decoder(self) -> nn.Module:
        """Build what turns the features of the backbone into class maps."""
        raise NotImplementedError

    @staticmethod
    def mirrored(passes: list[Tensor]) -> list[bool]:
        """Every second pass saw the image mirrored."""
        return [i % 2 == 1 for i in range(len(passes))]

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        groups = [
            _group(self.model.backbone.parameters(), cfg.lr_body),
            _group(self.decoder.parameters(), cfg.lr_head),
        ]
        return [g for g in groups if g["params"]]

    def new_tags(self, batch: Batch) -> Tensor:
        """Return the tags of the new classes, (B, n_new): 1 present, 0 absent, -1 unknown."""
        return batch["tags"][:, self.first_new :].float()

    def class_maps(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) on 0-255 to class scores (B, K, h, w), as :meth:`label` expects them."""
        raise NotImplementedError

    def label(self, passes: list[Tensor], tags: Tensor, image: Tensor) -> Tensor:
        """Merge the maps of all scales and flips into hard labels.

        Args:
            passes: maps (1, K, h, w) of each pass; every second one saw the image mirrored.
            tags: (n_new,) 1 present, 0 absent, -1 unknown.
            image: (1, 3, H, W) on 0-255.

        Returns:
            (H, W) int64: 0 background, k the k-th new class, 255 undecided.
        """
        raise NotImplementedError

    @torch.no_grad()
    def pseudo_label(self, image: Tensor, tags: Tensor, *, scales: tuple[float, ...]) -> npt.NDArray[np.uint8]:
        """Label one image (1, 3, H, W) on 0-255 with channel ids, (H, W) uint8."""
        return self.channel_ids(self.label(self.passes(image, scales=scales), tags, image))

    @torch.no_grad()
    def passes(self, image: Tensor, *, scales: tuple[float, ...]) -> list[Tensor]:
        """Return the maps of one image (1, 3, H, W) at every scale, as it is and mirrored."""
        height, width = image.shape[-2:]
        found = []
        for scale in scales:
            size = (max(32, round(scale * height)), max(32, round(scale * width)))
            resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
            both = self.class_maps(torch.cat([resized, resized.flip(3)])).float()
            found += [both[:1], both[1:]]
        return found

    def channel_ids(self, labels: Tensor) -> npt.NDArray[np.uint8]:
        """Map labels (H, W), k the k-th new class, to channel ids; background and undecided stay."""
        shifted = torch.where((labels > 0) & (labels != VOID_ID), labels + self.first_new, labels)
        return shifted.to(torch.uint8).cpu().numpy()


class TwoStage(Method):
    """Base class of CAM, SEAM, SS and EPS: subclasses name their ``weak_type``."""

    supervision = "tags"
    options_type = TwoStageOptions
    options: TwoStageOptions
    weak_type: ClassVar[type[WeakNetwork]]

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        assert data.tags is not None
        weak = self.weak_type(self.old_model, self.options, n_new=self.model.n_classes - self.n_old)
        stage.fit("weak", weak, self.weak_data(data, stage), self.options.weak)
        weak.to(stage.device).eval()
        read_mask = self.write_labels(PSEUDO_LABELS, self.labeller(weak, data, stage), data, stage)
        return data.changed(read_mask=read_mask, tags=None, read_saliency=None)

    def weak_data(self, data: TrainingSet, stage: Stage) -> TrainingSet:  # noqa: ARG002
        """Return what stage 1 trains on; by default the step's images and tags."""
        return data

    def labeller(self, weak: WeakNetwork, data: TrainingSet, stage: Stage) -> Labeller:  # noqa: ARG002
        """Return what labels an image (1, 3, H, W) with its tags (n_new,) once stage 1 is trained."""
        return partial(weak.pseudo_label, scales=self.options.scales)

    def write_labels(self, name: str, labeller: Labeller, data: TrainingSet, stage: Stage) -> ImageReader:
        """Label every image into ``run_dir / name``, files that are there already left as they are; return a reader.

        An image without any new class is background without asking.
        """
        assert data.tags is not None
        folder = stage.run_dir / name
        folder.mkdir(exist_ok=True)
        files = tuple(folder / f"{data.name(index)}.png" for index in range(data.size))
        palette = default_palette(self.model.n_classes)
        for index, file in enumerate(files):
            if file.is_file():
                continue
            image = data.read_image(index)
            tags = torch.from_numpy(data.tags[index, self.n_old - 1 :]).to(stage.device)
            mask = np.zeros(image.shape[:2], dtype=np.uint8)
            if (tags > 0).any():
                pixels = as_batch(image, stage.device).float()
                with stage.autocast():
                    mask = labeller(pixels, tags)
            write_mask(file, mask, palette)
        return partial(read_mask_file, files)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        loss = icarl_loss(
            self.at_pixels(found.logits, batch),
            batch["mask"],
            self.at_pixels(found.old_logits, batch),
            background_mix=None,
        )
        return {"seg": loss}
