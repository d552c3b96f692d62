"""What every method is: a module that maps a batch to named losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import Batch

Supervision = Literal["masks", "tags"]


@dataclass(frozen=True)
class StepContext:
    """What a method gets to work with: the model to train, its parent (None in the base step), the settings."""

    model: SegmentationModel
    old_model: SegmentationModel | None
    config: UpdateConfig


class Method(nn.Module):
    """Base class: ``forward(batch, epoch)`` returns the losses, whose sum is minimised.

    Subclasses set ``name``, ``supervision``, ``idea`` and ``paper``. The old model is kept outside the module tree: it
    is neither trained, nor moved into checkpoints.
    """

    name: ClassVar[str]
    supervision: ClassVar[Supervision]
    idea: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, context: StepContext) -> None:
        super().__init__()
        self.model = context.model
        self._old = [context.old_model] if context.old_model is not None else []
        for old in self._old:
            old.eval().requires_grad_(False)

    @property
    def warm_up_epochs(self) -> int:
        """Epochs during which the ``warmup`` schedule keeps the learning rate constant."""
        return 0

    @property
    def old_model(self) -> SegmentationModel:
        return self._old[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for old in self._old:  # follows the device and memory format of the module
            old._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch, in training mode."""

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward(batch, epoch); got {len(batch)} fields in {epoch}.")

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


def _group(parameters: Iterable[nn.Parameter], lr: float) -> dict[str, Any]:
    return {"params": [p for p in parameters if p.requires_grad], "lr": lr}
