"""Our own step from image tags: WILSON's localizer, then exclusive soft labels for a second round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cilseg.classes import UNLABELLED_ID, default_color
from cilseg.losses.exclusive import Target, exclusive_loss, exclusive_target
from cilseg.losses.pamr import pamr
from cilseg.losses.pseudo_labels import soft_labels
from cilseg.losses.wilson import encoder_distillation
from cilseg.methods.base import Method, Options, Stage, StepContext
from cilseg.methods.two_stage import PSEUDO_LABELS
from cilseg.methods.wilson import Wilson, WilsonOptions
from cilseg.train.dataset import Batch, ImageReader, TrainingSet
from cilseg_serve.images import read_mask, write_mask

CONFIDENCE = "pseudo_label_confidence"
FIRST = "first"


class ExclusiveOptions(Options):
    """How labels of new classes and the old model's scores become one target."""

    exclusive: bool = True
    """Lower the targets of old classes where a new class is claimed, and the other way round."""
    enc: float = Field(default=1.0, ge=0)
    """Factor of the feature distillation."""
    memory: bool = True
    """Train on the images that the base step stored, where it stored any."""
    balance: float = Field(default=10.0, ge=1)
    """Most that a pixel of an image without new classes may weigh, when the old model mistakes new classes for its
    class; 1: all weigh the same."""
    negative_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of each batch taken from images that show no new class; null: as many as there are."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Share of the trained weights in the result; the rest is the parent's."""


class TagsOptions(ExclusiveOptions):
    """Settings of both rounds."""

    first: WilsonOptions = WilsonOptions(warm_up_epochs=3, suppress_claimed=True)
    """The first round: WILSON, exclusive."""
    restart: bool = True
    """Start the second round from the parent again, not from the end of the first."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the one-hot part of the labels."""
    scales: tuple[float, ...] = (1.0, 1.5)
    """Image scales whose answers are merged into labels, each also mirrored."""
    localizer_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the localizer in the labels; the rest is the segmentation head's."""


class Exclusive(Method):
    """Labels of new classes and the old model's scores in one target per pixel."""

    name = "masks"
    supervision = "masks"
    idea = "the second round of `tags` with drawn masks of the new classes"
    paper = "this project"
    options_type = ExclusiveOptions
    options: ExclusiveOptions

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        assert data.read_mask is not None
        data = data.changed(read_mask=partial(_read_new, data.read_mask, self.n_old))
        assert data.read_mask is not None
        shows = [bool(self._new_in(data.read_mask(index))) for index in range(data.size)]
        data = self.balanced(self.with_memory(data), shows)
        self.weigh(data, shows, stage)
        return data

    @torch.no_grad()
    def weigh(self, data: TrainingSet, shows: Sequence[bool], stage: Stage) -> None:
        """Set the weight of every old class in images without new classes.

        Where the old model says "horse", the step's images may show three times as many cows as horses, and the new
        model learns that "horse" means cow. The weight of a class is what labels of new classes claim of it, over what
        images without new classes show of it.
        """
        assert data.read_mask is not None
        old = self.old_model.to(stage.device).eval()
        claimed, shown = torch.zeros(self.n_old), torch.zeros(self.n_old)
        for index in range(data.size):
            image, mask = data.read_image(index), data.read_mask(index)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(stage.device)
            with stage.autocast():
                answer = old(pixels).argmax(dim=1)[0].cpu()
            labels = torch.from_numpy(mask.astype(np.int64))[None, None].float()
            new = F.interpolate(
                ((labels >= self.n_old) & (labels < self.model.n_classes)).float(), answer.shape, mode="area"
            )
            if index < len(shows) and shows[index]:
                claimed += torch.bincount(answer.flatten(), new.flatten(), minlength=self.n_old)
            else:
                shown += torch.bincount(answer.flatten(), minlength=self.n_old)
        weights = (claimed / shown.clamp(min=1)).clamp(1, self.options.balance)
        print("claimed", claimed.tolist(), "shown", shown.tolist(), "weights", weights.tolist(), flush=True)
        self.old_weights = weights.to(stage.device)

    def _new_in(self, mask: npt.NDArray[np.uint8]) -> bool:
        return bool(((mask >= self.n_old) & (mask < self.model.n_classes)).any())

    def balanced(self, data: TrainingSet, shows: Sequence[bool]) -> TrainingSet:
        """Return ``data`` with batches of which ``negative_share`` is images without any new class."""
        share = self.options.negative_share
        shows = [*shows, *[False] * (data.size - len(shows))]  # stored images
        negatives = tuple(i for i, new in enumerate(shows) if not new)
        tagged = tuple(i for i, new in enumerate(shows) if new)
        if share is None or not negatives or not tagged:
            return data
        return data.changed(plan=partial(_batches, tagged, negatives, share, data.seed))

    def with_memory(self, data: TrainingSet) -> TrainingSet:
        """Return ``data`` and the stored images behind it."""
        memory = self.inputs.memory if self.options.memory else None
        if memory is None:
            return data
        assert data.read_mask is not None
        return data.changed(
            size=data.size + memory.size,
            read_image=partial(_read_either, data.read_image, memory.read_image, data.size),
            read_mask=partial(_read_either, data.read_mask, memory.read_mask, data.size),
            read_saliency=partial(_read_either, data.read_saliency, partial(_certain, memory.read_mask), data.size)
            if data.read_saliency
            else None,
            names=None,
            tags=None
            if data.tags is None
            else np.concatenate([data.tags, np.full((memory.size, data.tags.shape[1]), -1, np.int8)]),
        )

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        opt = self.options
        found = self.answers(batch)
        memory = self.inputs.memory
        target = exclusive_target(
            self.at_pixels(found.old_logits, batch),
            batch["mask"],
            batch.get("saliency"),
            n_new=self.model.n_classes - self.n_old,
            n_drawn=memory.n_channels if memory else None,
            exclusive=opt.exclusive,
        )
        new = (batch["mask"] >= self.n_old) & (batch["mask"] < self.model.n_classes)
        empty = ~((batch["tags"][:, self.n_old - 1 :] > 0).any(dim=1) if "tags" in batch else new.flatten(1).any(dim=1))
        said = self.at_pixels(found.old_logits, batch).argmax(dim=1)
        weight = torch.where(empty[:, None, None], self.old_weights[said], 1.0)
        target = Target(target.scores, target.weight * weight[:, None])
        return {
            "seg": exclusive_loss(self.at_pixels(found.logits, batch), target),
            "enc": opt.enc * encoder_distillation(found.body, found.old_body),
        }

    def finish(self, data: TrainingSet, stage: Stage) -> None:  # noqa: ARG002
        share = self.options.keep
        if share < 1:
            old = self.old_model.state_dict()
            state = self.model.state_dict()
            for key, value in state.items():
                if key in old and value.is_floating_point():
                    state[key] = torch.lerp(old[key], value, share)
            self.model.load_state_dict(state)


class Tags(Exclusive):
    """Round one trains WILSON with exclusive targets; round two learns from what it says of the tagged images."""

    name = "tags"
    supervision = "tags"
    idea = "two rounds: WILSON with exclusive targets labels the tagged images, the parent learns from these labels"
    paper = "this project; builds on Cermelli et al., CVPR 2022"
    options_type = TagsOptions
    options: TagsOptions
    refines = True

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        section = {"wilson": self.options.first.model_dump()}
        config = context.config.model_copy(update=section)
        self._first = [Wilson(replace(context, config=config))]
        self._rates = context.config.optimiser

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        assert data.tags is not None
        shows = (data.tags[:, self.n_old - 1 :] > 0).any(axis=1).tolist()
        start = {key: value.clone() for key, value in self.model.state_dict().items()}
        first = self._first[0]
        stage.fit(FIRST, first, self.balanced(data, shows), self._rates)
        first.to(stage.device).eval()
        labelled = self.balanced(self.with_memory(self._labelled(first, data, stage)), shows)
        self.weigh(labelled, shows, stage)
        if self.options.restart:
            self.model.load_state_dict(start)
        return labelled

    def _labelled(self, first: Wilson, data: TrainingSet, stage: Stage) -> TrainingSet:
        assert data.tags is not None
        folders = [stage.run_dir / PSEUDO_LABELS, stage.run_dir / CONFIDENCE]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        labels, confidences = (tuple(f / f"{data.name(i)}.png" for i in range(data.size)) for f in folders)
        palette = np.array([list(bytes.fromhex(default_color(k)[1:])) for k in range(self.model.n_classes)], np.uint8)
        grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        for index in range(data.size):
            if labels[index].is_file():
                continue
            image = data.read_image(index)
            ids, sure = np.full(image.shape[:2], UNLABELLED_ID, np.uint8), np.zeros(image.shape[:2], np.uint8)
            tags = torch.from_numpy(data.tags[index]).to(stage.device)
            if (tags[self.n_old - 1 :] > 0).any():
                with stage.autocast():
                    ids, sure = self._label(first, image, tags.float(), stage)
            write_mask(confidences[index], sure, grey)
            write_mask(labels[index], ids, palette)
        return data.changed(read_mask=partial(_read, labels), read_saliency=partial(_read, confidences))

    @torch.no_grad()
    def _label(
        self, first: Wilson, image: npt.NDArray[np.uint8], tags: Tensor, stage: Stage
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().to(stage.device)
        height, width = pixels.shape[-2:]
        half = (height // 2, width // 2)
        opt = self.options
        total: Tensor | None = None
        for scale in opt.scales:
            size = (max(32, round(scale * height)), max(32, round(scale * width)))
            resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
            both = torch.cat([resized, resized.flip(3)])
            answers = first.class_scores(both, tags[None].expand(2, -1), localizer_share=opt.localizer_share)
            answers = F.interpolate(answers, size=half, mode="bilinear", align_corners=False)
            merged = answers[:1] + answers[1:].flip(3)
            total = merged if total is None else total + merged
        assert total is not None
        total = total / total.sum(dim=1, keepdim=True).clamp(min=1e-6)
        small = F.interpolate(pixels, size=half, mode="bilinear", align_corners=False)
        refined = pamr(small, total)
        refined = F.interpolate(refined, size=(height, width), mode="bilinear", align_corners=False)
        soft = soft_labels(refined, alpha=opt.alpha)[:, self.n_old :]
        sure, which = soft.max(dim=1)
        ids = (which + self.n_old).to(torch.uint8)[0].cpu().numpy()
        return ids, (255 * sure[0]).round().to(torch.uint8).cpu().numpy()


def _read_new(read_mask: ImageReader, n_old: int, index: int) -> npt.NDArray[np.uint8]:
    """What a mask of new classes leaves as background, the old model knows better."""
    mask = read_mask(index)
    return np.where(mask < n_old, UNLABELLED_ID, mask).astype(np.uint8)


def _batches(
    tagged: tuple[int, ...], negatives: tuple[int, ...], share: float, seed: int, epoch: int, batch_size: int
) -> list[Sequence[int]]:
    """Return the batches of an epoch, each with the given share of negatives; images come round in random order."""
    count = max(1, (len(tagged) + len(negatives)) // batch_size)
    n_negative = min(batch_size - 1, max(1, round(share * batch_size)))
    rng = np.random.Generator(np.random.PCG64([seed, 3, epoch]))

    def drawn(images: tuple[int, ...], wanted: int) -> list[int]:
        rounds = -(-wanted // len(images))
        order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
        return [int(i) for i in order[:wanted]]

    new, old = drawn(tagged, count * (batch_size - n_negative)), drawn(negatives, count * n_negative)
    return [
        [
            *new[k * (batch_size - n_negative) : (k + 1) * (batch_size - n_negative)],
            *old[k * n_negative : (k + 1) * n_negative],
        ]
        for k in range(count)
    ]


def _read_either(first: ImageReader, second: ImageReader, size: int, index: int) -> npt.NDArray[np.uint8]:
    return first(index) if index < size else second(index - size)


def _certain(read_mask: ImageReader, index: int) -> npt.NDArray[np.uint8]:
    return np.full_like(read_mask(index), 255)


def _read(files: tuple[Path, ...], index: int) -> npt.NDArray[np.uint8]:
    return read_mask(files[index])
