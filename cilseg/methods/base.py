"""What every method is: a module that maps a batch to named losses, and what it may be given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.errors import InputError
from cilseg.models.initialisation import background_split_init
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import Batch, ImageReader, TrainingSet

Supervision = Literal["masks", "tags", "points", "scribbles", "shots"]
Need = Literal["replay", "saliency", "prototypes"]
BUILTIN = "builtin"
PriorReader = Callable[[int], npt.NDArray[np.uint8] | None]
"""Index of a training image -> ``(H, W, n_new)`` uint8 at any size, 255 where a new class may be, 0 where it surely is
not; None for an image of which nothing is known."""


class Options(BaseModel):
    """Settings of one method, the section ``update.NAME`` of a configuration; a method without any has these."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Replay:
    """Images that stand in for those of the old classes; no mask of them is known.

    Args:
        read_image: index -> ``(H, W, 3)`` uint8.
        class_ids: (R,) the old foreground class that each image was found for.
    """

    read_image: ImageReader
    class_ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Memory:
    """Images of the base step that were stored with it.

    Args:
        size: number of images.
        read_image: index -> ``(H, W, 3)`` uint8.
        read_mask: index -> ``(H, W)`` uint8 channel ids of the base classes, 255 void.
        n_channels: channels, background included, that the masks know.
    """

    size: int
    read_image: ImageReader
    read_mask: ImageReader
    n_channels: int


@dataclass(frozen=True)
class StepInputs:
    """What a method may be given beside its training images; which it needs, it says in ``needs``."""

    replay: Replay | None = None
    saliency: ImageReader | Literal["builtin"] | None = None
    """Index of a training image -> ``(H, W)`` uint8, or ``builtin``: made from the parent's own features."""
    prior: PriorReader | None = None
    """Where new classes may be, for methods with ``uses_priors``."""
    memory: Memory | None = None
    class_names: Sequence[str] | None = None
    """Names of the channels of the model to train, background first; None: they go by their numbers."""
    kept: Path | None = None
    """Folder with the files that the parent's step left for later ones (:meth:`Method.keep`)."""


@dataclass(frozen=True)
class StepContext:
    """What a method gets to work with: the model to train, its parent (None in the base step), the settings."""

    model: SegmentationModel
    old_model: SegmentationModel | None
    config: UpdateConfig
    inputs: StepInputs = field(default_factory=StepInputs)


@dataclass(frozen=True)
class Stage:
    """How a method does work before the main loop: where files go, what it runs on, and training something else."""

    run_dir: Path
    seed: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    """Context of the run's precision for passes without gradient."""
    fit: Callable[[str, Method, TrainingSet, OptimiserConfig], None]
    """Train another method under a name of its own; resumes, and is instant once it has finished."""


class Answers(NamedTuple):
    """Both models on one batch; ``body`` (B, D, h, w), ``logits`` at feature stride."""

    body: Tensor
    logits: Tensor
    old_body: Tensor
    old_logits: Tensor


class Method(nn.Module):
    """Base class: ``forward(batch, epoch)`` returns the losses, whose sum is minimised.

    Subclasses set ``name``, ``supervision``, ``idea`` and ``paper``, and refuse in ``__init__`` (InputError) what they
    could not work with. The old model is kept outside the module tree: it
    is neither trained, nor moved into checkpoints.
    """

    name: ClassVar[str] = ""
    supervision: ClassVar[Supervision]
    idea: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    options_type: ClassVar[type[Options]] = Options
    sees_old_masks: ClassVar[bool] = False
    """Whether its masks show the old classes too (joint training, shots)."""
    uses_priors: ClassVar[bool] = False
    """Whether it uses, beside tags, the priors that a tag list may carry."""
    refines: ClassVar[bool] = False
    """Whether it also learns from a step without new classes."""
    background_init: ClassVar[bool] = False
    """Whether new classifiers start as shares of the background (MiB), instead of at random."""

    def __init__(self, context: StepContext) -> None:
        super().__init__()
        self.model = context.model
        self.inputs = context.inputs
        self.options: Any = context.config.options(self.name, self.options_type)
        self._old = [context.old_model] if context.old_model is not None else []
        for old in self._old:
            old.eval().requires_grad_(False)
        if self.background_init and self._old and self.model.n_classes > self.n_old:
            start_as_background(self.model)

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Return name, supervision, idea, paper, further needs, and the options with their defaults."""
        return {
            "name": cls.name,
            "supervision": cls.supervision,
            "needs": list(cls.needs),
            "idea": cls.idea,
            "paper": cls.paper,
            "options": cls.options_type().model_dump(mode="json"),
        }

    @property
    def warm_up_epochs(self) -> int:
        """Epochs during which the ``warmup`` schedule keeps the learning rate constant."""
        return 0

    @property
    def old_model(self) -> SegmentationModel:
        return self._old[0]

    @property
    def n_old(self) -> int:
        """Channels of the old model, background included."""
        return self.old_model.n_classes

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for old in self._old:  # follows the device and memory format of the module
            old._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:  # noqa: ARG002
        """Work before the main loop (thresholds, pseudo-labels, imprinting); return what the loop trains on.

        Runs again after a resume, so it must give the same result from the same files.
        """
        return data

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch, in training mode."""

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward(batch, epoch); got {len(batch)} fields in {epoch}.")

    def finish(self, data: TrainingSet, stage: Stage) -> None:
        """Called after the last epoch with what ``prepare`` returned: measure what is kept, undo what was temporary."""

    def keep(self, folder: Path) -> None:
        """Write what later steps of the lineage need into ``folder``; the files become part of the version."""

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        """Trainable parameters with a learning rate per part: body, head, old and new classifiers."""
        steps = list(self.model.classifier.steps)
        n_old = len(self.old_model.classifier.steps) if self._old else len(steps)
        old, new = steps[:n_old], steps[n_old:]
        groups = [
            _group(self.model.backbone.parameters(), cfg.lr_body),
            _group(self.model.head.parameters(), cfg.lr_head),
            _group((p for step in old for p in step.parameters()), cfg.lr_classifier),
            _group((p for step in new for p in step.parameters()), cfg.lr_new_classifier),
        ]
        return [g for g in groups if g["params"]]

    def two_bodies(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return body features of the new and the old model for ``batch``; a frozen prefix is computed once."""
        x = self.model.normalise(batch["image"])
        old_backbone = self.old_model.backbone
        shared = self.model.backbone.prefix(x)
        body = self.model.backbone.suffix(shared)
        with torch.no_grad():
            if old_backbone.frozen_parts == self.model.backbone.frozen_parts:
                old_body = old_backbone.suffix(shared)
            else:
                old_body = old_backbone(x)
        return body, old_body

    def answers(self, batch: Batch) -> Answers:
        """Return body features and logits of the new model and, without gradient, of the old one."""
        body, old_body = self.two_bodies(batch)
        with torch.no_grad():
            old_logits = self.old_model.classify(old_body)
        return Answers(body, self.model.classify(body), old_body, old_logits)

    def at_pixels(self, logits: Tensor, batch: Batch) -> Tensor:
        """Upsample stride logits ``(B, C, h, w)`` to the pixels of the batch, in float32."""
        height, width = batch["image"].shape[-2:]
        return self.model.upsample(logits.float(), height, width)


def start_as_background(model: SegmentationModel) -> None:
    """Let the newest classifier start as shares of the background (MiB: Cermelli et al., CVPR 2020, eq. 10, 11).

    Must come after the old weights were loaded; the soft-max of the old classes does not change.
    """
    steps = model.classifier.steps
    newest, old = steps[-1], steps[0]
    if old.bias is None:
        raise InputError(
            "The parent has a cosine classifier, which knows no background bias to start new classes from. Use pifs, "
            "or train a base without model.classifier=cosine."
        )
    new_weight, new_bias = newest.get_parameter("weight"), newest.get_parameter("bias")
    old_bias = old.get_parameter("bias")
    weight, bias, changed = background_split_init(old.get_parameter("weight"), old_bias, n_new=len(new_bias))
    with torch.no_grad():
        new_weight.copy_(weight)
        new_bias.copy_(bias)
        old_bias.copy_(changed)


def _group(parameters: Iterable[nn.Parameter], lr: float) -> dict[str, Any]:
    return {"params": [p for p in parameters if p.requires_grad], "lr": lr}
