"""The default step from image tags: two rounds, one object per pixel, and the old model's word for what it knows not.

Round one is WILSON (Cermelli et al., CVPR 2022) with exclusive targets. It labels the tagged images, with what the old
model says of look-alikes; round two starts from the parent again and learns from these labels. docs/how-it-works.md
explains each part and what it buys.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.bundle import write_file_atomically
from cilseg.classes import UNLABELLED_ID, VOID_ID, default_palette
from cilseg.config import OptimiserConfig
from cilseg.data.tags import FEW_NEGATIVES
from cilseg.errors import InputError
from cilseg.losses.exclusive import exclusive_loss, exclusive_target, with_look_alikes
from cilseg.losses.label_making import merge_passes, over_maximum, under_prior
from cilseg.losses.pamr import pamr
from cilseg.losses.wilson import encoder_distillation
from cilseg.methods.base import Method, Options, Stage, StepContext, Supervision
from cilseg.methods.look_alikes import measured_weights, names_of, warn_of_few, warn_of_rare, weights_of
from cilseg.methods.two_stage import PSEUDO_LABELS
from cilseg.methods.wilson import Wilson, WilsonOptions
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import Batch, ImageReader, TrainingSet, as_batch, read_either, read_mask_file
from cilseg_serve.images import write_mask

CONFIDENCE = "pseudo_label_confidence"
"""Folder of a run with one grey PNG per training image: how sure its label is, 255 is certain."""
LOOK_ALIKES = "look_alikes.json"
"""File of a run with the weights of look-alikes, in the form of the option ``look_alike_weights``."""
FIRST = "first"
_ALONE = 0.2
"""Learning rates of body, head and old classifiers, relative to the settings, where WILSON's losses are all there is:
without images that lack every new class old ones are kept by training slowly (docs/benchmarks.md)."""
_LOGGER = logging.getLogger(__name__)


class ExclusiveOptions(Options):
    """How labels of new classes and the old model's scores become one target, and what batches hold."""

    exclusive: bool = True
    """Lower the targets of old classes where a new class is claimed."""
    negative_share: float | None = Field(default=0.5, gt=0, lt=1)
    """Share of each batch taken from images that show no new class; null: as they come."""
    memory: bool = True
    """Train on the images that the base step stored, where it stored any."""
    enc: float = Field(default=1.0, ge=0)
    """Factor of the feature distillation."""


class FirstRound(WilsonOptions):
    """WILSON's options, with the defaults of the first round."""

    warm_up_epochs: int = Field(default=3, ge=0)
    suppress_claimed: bool = True


class TagsOptions(ExclusiveOptions):
    """Settings of both rounds; they have one optimiser, but for rates and epochs of the first round."""

    first: FirstRound = FirstRound()
    """The first round."""
    first_rates: float = Field(default=0.5, gt=0, le=1)
    """Learning rates of body, head and old classifiers in the first round, relative to the second: what the localizer
    still gets wrong there should not move them far."""
    first_epochs: int | None = Field(default=None, ge=1)
    """Epochs of the first round; null: as many as the second has."""
    look_alikes: bool = True
    """Let old classes that the old model sees in new ones speak for these in the labels."""
    look_alike_weights: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]] | None = None
    """New class -> old class -> how far the old one speaks for it, what is left out not at all; null: measured."""
    claim_from: float = Field(default=0.55, gt=0, lt=1)
    """Share of a pixel from which on a new class claims it, relative to the largest share that it has in the image."""
    unsure_from: float | None = Field(default=0.3, ge=0, lt=1)
    """Share from which on a pixel that no new class claims is left out of the loss; null: none is."""
    alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the hard label; the rest is the share itself."""
    scales: tuple[float, ...] = (1.0, 1.5)
    """Image scales whose answers are merged into labels, each also mirrored."""
    localizer_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the localizer in the labels; the rest is the segmentation head's."""
    prior_weight: float = Field(default=0.8, ge=0, le=1)
    """How far the prior of an image, where it has one, lowers the shares of new classes; 1 forbids where it says 0."""


class Exclusive(Method):
    """The second round, with masks of the new classes that somebody drew."""

    name = "masks"
    supervision: ClassVar[Supervision] = "masks"
    idea = "as `tags`, with drawn masks of the new classes in place of labels made from tags"
    paper = "this project"
    options_type = ExclusiveOptions
    options: ExclusiveOptions

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:  # noqa: ARG002
        assert data.read_mask is not None
        shows = [self._shows_new(data.read_mask(index)) for index in range(data.size)]
        data = data.changed(read_mask=partial(_read_new, data.read_mask, self.n_old))
        return self.balanced(self.with_memory(data), shows)

    def _shows_new(self, mask: npt.NDArray[np.uint8]) -> bool:
        return bool(((mask >= self.n_old) & (mask < self.model.n_classes)).any())

    def with_memory(self, data: TrainingSet) -> TrainingSet:
        """Return ``data`` with the stored images behind it."""
        memory = self.inputs.memory if self.options.memory else None
        if memory is None:
            return data
        assert data.read_mask is not None
        certain = partial(_certain, memory.read_mask)
        return data.changed(
            size=data.size + memory.size,
            read_image=partial(read_either, data.read_image, memory.read_image, data.size),
            read_mask=partial(read_either, data.read_mask, memory.read_mask, data.size),
            read_saliency=data.read_saliency and partial(read_either, data.read_saliency, certain, data.size),
            names=None,
            tags=None,
        )

    def balanced(self, data: TrainingSet, shows: Sequence[bool | None]) -> TrainingSet:
        """Return ``data`` with batches of which ``negative_share`` is images without any new class.

        Args:
            data: tagged images, stored ones behind them.
            shows: for each tagged image whether it shows a new class; None: nobody said, so it comes into no batch.
        """
        share = self.options.negative_share
        shows = [*shows, *[False] * (data.size - len(shows))]
        negatives = tuple(i for i, new in enumerate(shows) if new is False)
        tagged = tuple(i for i, new in enumerate(shows) if new)
        if share is None or not negatives or not tagged:
            return data
        return data.changed(plan=partial(_batches, tagged, negatives, share, data.seed))

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        found = self.answers(batch)
        memory = self.inputs.memory
        target = exclusive_target(
            self.at_pixels(found.old_logits, batch),
            batch["mask"],
            batch.get("saliency"),
            n_new=self.model.n_classes - self.n_old,
            n_drawn=memory.n_channels if memory else None,
            exclusive=self.options.exclusive,
        )
        return {
            "seg": exclusive_loss(self.at_pixels(found.logits, batch), target),
            "enc": self.options.enc * encoder_distillation(found.body, found.old_body),
        }


class Tags(Exclusive):
    """Round one labels the tagged images, round two learns from these labels."""

    name = "tags"
    supervision = "tags"
    idea = "two rounds of exclusive targets; look-alikes help to label; absent-tagged images in every batch"
    paper = "this project; after Cermelli et al., CVPR 2022, and Roy et al. (RaSP), 2023"
    options_type = TagsOptions
    options: TagsOptions
    refines = True
    uses_priors = True

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        rates = context.config.optimiser
        epochs = self.options.first_epochs or rates.epochs
        self._first_optimiser = _slower(rates, self.options.first_rates).model_copy(update={"epochs": epochs})
        n_new = self.model.n_classes - self.n_old
        given = self.options.look_alike_weights
        if given is not None and not self.options.look_alikes:
            raise InputError(
                "update.tags.look_alike_weights is given, but update.tags.look_alikes=false leaves look-alikes out of "
                "the labels: set look_alikes to true, or look_alike_weights to null."
            )
        self._weights = None if given is None or n_new == 0 else weights_of(given, self._class_names, self.n_old)
        self._context = context
        self._only: list[Wilson] = []
        """WILSON on this module's model, where the step is its losses alone; it is no part of this module's state."""
        if n_new == 0:  # nothing to label
            self._train_wilson()
        # A model of its own: what freezes it while it trains must not touch that of the second round.
        self._first = [self._wilson(self.old_model.extended(n_new))]  # no part of this module's state either

    def _wilson(self, model: SegmentationModel, **options: Any) -> Wilson:
        config = self._context.config.model_copy(update={"wilson": {**self.options.first.model_dump(), **options}})
        return Wilson(replace(self._context, model=model, config=config))

    def _train_wilson(self, **options: Any) -> None:
        self._only = [self._wilson(self.model, **options)]
        self.localizer = self._only[0].localizer

    @property
    def warm_up_epochs(self) -> int:
        return self._only[0].warm_up_epochs if self._only else 0

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        if not self._only:
            return super().parameter_groups(cfg)
        return self._only[0].parameter_groups(_slower(cfg, _ALONE) if self.model.n_classes > self.n_old else cfg)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self._only[0](batch, epoch) if self._only else super().forward(batch, epoch)

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        assert data.tags is not None
        if self._only:
            return data
        states = data.tags[:, self.n_old - 1 :]
        shows = [True if (row > 0).any() else None if (row < 0).any() else False for row in states]
        if shows.count(False) < FEW_NEGATIVES and not (self.options.memory and self.inputs.memory):
            warn_of_few(shows.count(False), unused="priors" if self.inputs.prior else "")
            self._train_wilson(suppress_claimed=False)
            return data
        labelled = self._labelled(data, stage, shows)
        return self.balanced(self.with_memory(labelled), shows)

    def _labelled(self, data: TrainingSet, stage: Stage, shows: Sequence[bool | None]) -> TrainingSet:
        """Write labels and confidences of every image into the run's folder, what is there already left as it is."""
        assert data.tags is not None
        labels, confidences = (
            tuple(stage.run_dir / folder / f"{data.name(index)}.png" for index in range(data.size))
            for folder in (PSEUDO_LABELS, CONFIDENCE)
        )
        for folder in (PSEUDO_LABELS, CONFIDENCE):
            (stage.run_dir / folder).mkdir(exist_ok=True)
        palette = default_palette(self.model.n_classes)
        grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        missing = [index for index in range(data.size) if not labels[index].is_file()]
        first, look_alikes = self._first[0], None
        if missing:
            negatives = [index for index, new in enumerate(shows) if new is False]
            warn_of_rare(self.old_model, data, negatives, stage, class_names=self._class_names)
            stage.fit(FIRST, first, self.balanced(data, shows), self._first_optimiser)
            first.to(stage.device).eval()
        if missing and self.options.look_alikes:
            weights = self._weights
            if weights is None:
                weights = measured_weights(first, self.old_model, data, stage, share=self.options.localizer_share)
            told = json.dumps(names_of(weights, self._class_names, self.n_old), indent=1, ensure_ascii=False)
            write_file_atomically(stage.run_dir / LOOK_ALIKES, f"{told}\n".encode())
            _LOGGER.info("Look-alikes, new classes by old channels: %s", weights.numpy().round(2).tolist())
            look_alikes = weights.to(stage.device)
        for index in missing:
            image = data.read_image(index)
            nothing = VOID_ID if shows[index] is None else UNLABELLED_ID
            ids, sure = np.full(image.shape[:2], nothing, np.uint8), np.zeros(image.shape[:2], np.uint8)
            if shows[index]:
                tags = torch.from_numpy(data.tags[index]).to(stage.device).float()
                prior = self._prior(index, stage)
                with stage.autocast():
                    ids, sure = self._label(first, image, tags, look_alikes, prior)
            write_mask(confidences[index], sure, grey)
            write_mask(labels[index], ids, palette)  # last: where it is, both are
        return data.changed(
            read_mask=partial(read_mask_file, labels), read_saliency=partial(read_mask_file, confidences), tags=None
        )

    @property
    def _class_names(self) -> Sequence[str]:
        return self.inputs.class_names or [str(k) for k in range(self.model.n_classes)]

    def _prior(self, index: int, stage: Stage) -> Tensor | None:
        """Return where new classes may be in an image, (1, n_new or 1, H, W) in 0 .. 1; None where nothing is known."""
        values = self.inputs.prior(index) if self.inputs.prior is not None else None
        if values is None or self.options.prior_weight == 0:
            return None
        return as_batch(values, stage.device).float() / 255.0

    @torch.no_grad()
    def _label(
        self,
        first: Wilson,
        image: npt.NDArray[np.uint8],
        tags: Tensor,
        look_alikes: Tensor | None,
        prior: Tensor | None = None,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return channel ids of new classes (H, W) uint8, and how sure they are (H, W) uint8, 255 is certain."""
        opt = self.options
        pixels = as_batch(image, tags.device).float()
        height, width = pixels.shape[-2:]
        half = (height // 2, width // 2)
        scores, old = [], []
        for scale in opt.scales:
            size = (max(32, round(scale * height)), max(32, round(scale * width)))
            resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
            both = torch.cat([resized, resized.flip(3)])
            found = first.class_scores(both, tags[None].expand(2, -1), localizer_share=opt.localizer_share)
            scores += [found[:1], found[1:]]
            if look_alikes is not None:
                said = self.old_model(both).float().sigmoid()
                old += [said[:1], said[1:]]
        mirrored = [False, True] * len(opt.scales)
        total = merge_passes(scores, size_hw=half, mirrored=mirrored)
        if look_alikes is not None:
            total = with_look_alikes(total, merge_passes(old, size_hw=half, mirrored=mirrored), look_alikes, tags)
        small = F.interpolate(pixels, size=half, mode="bilinear", align_corners=False)
        refined = pamr(small, total[:, self.n_old :])  # every channel diffuses on its own
        if prior is not None:  # not before: what has diffused is less sharp than the prior
            refined = under_prior(refined, prior, weight=opt.prior_weight)
        refined = F.interpolate(refined, size=(height, width), mode="bilinear", align_corners=False)
        share, which = over_maximum(refined)[0].max(dim=0)  # a tagged class is there: its surest pixel is sure
        claimed = share > opt.claim_from
        unsure_from = 1.0 if opt.unsure_from is None else opt.unsure_from
        unclaimed = torch.where(share > unsure_from, VOID_ID, UNLABELLED_ID)
        ids = torch.where(claimed, which + self.n_old, unclaimed)
        sure = torch.where(claimed, opt.alpha + (1.0 - opt.alpha) * share, 0.0)
        return ids.to(torch.uint8).cpu().numpy(), (255 * sure).round().to(torch.uint8).cpu().numpy()


def _slower(rates: OptimiserConfig, factor: float) -> OptimiserConfig:
    """Return the settings with lower learning rates for all that the parent knows."""
    return rates.model_copy(
        update={key: factor * getattr(rates, key) for key in ("lr_body", "lr_head", "lr_classifier")}
    )


def _batches(
    tagged: tuple[int, ...], negatives: tuple[int, ...], share: float, seed: int, epoch: int, batch_size: int
) -> list[Sequence[int]]:
    """Return the batches of an epoch, each with the given share of negatives; images come round in random order."""
    count = max(1, (len(tagged) + len(negatives)) // batch_size)
    n_negative = min(batch_size - 1, max(1, round(share * batch_size)))
    n_tagged = batch_size - n_negative
    rng = np.random.Generator(np.random.PCG64([seed, 3, epoch]))

    def drawn(images: tuple[int, ...], wanted: int) -> list[int]:
        rounds = -(-wanted // len(images))
        order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
        return [int(i) for i in order[:wanted]]

    new, old = drawn(tagged, count * n_tagged), drawn(negatives, count * n_negative)
    return [
        [*new[k * n_tagged : (k + 1) * n_tagged], *old[k * n_negative : (k + 1) * n_negative]] for k in range(count)
    ]


# Readers are functions of the module: worker processes that are spawned get them as pickles.
def _read_new(read_mask: ImageReader, n_old: int, index: int) -> npt.NDArray[np.uint8]:
    """Return a mask of new classes in which the rest is unlabelled: of that the old model knows more."""
    mask = read_mask(index)
    return np.where(mask < n_old, UNLABELLED_ID, mask).astype(np.uint8)


def _certain(read_mask: ImageReader, index: int) -> npt.NDArray[np.uint8]:
    return np.full_like(read_mask(index), 255)
