"""RECALL: the decoder learns new classes from inpainted masks and keeps the old ones by labelled replay images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cilseg.classes import default_palette
from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.data.replay import from_helper, helper_labels, inpaint_background, replay_order
from cilseg.errors import InputError
from cilseg.losses.recall import seen_cross_entropy
from cilseg.methods.base import Method, Options, Replay, Stage, StepContext
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import Batch, ImageReader, TrainingSet, as_batch, read_either, read_mask_file
from cilseg_serve.images import write_mask


class RecallOptions(Options):
    """What a step leaves for later ones."""

    helper: bool = True
    """Train a helper decoder that will label replay images of this step's classes; not needed in a last step."""


class Recall(Method):
    """Frozen encoder; batches of new images and of replayed images in turn.

    Replay images of base classes are labelled by the parent (in the paper by the model of the base step, which in the
    first step is the same), those of later classes by the helper of the step that brought them.
    """

    name = "recall"
    supervision = "masks"
    idea = "replayed images of old classes, labelled by old models; background inpainted; frozen encoder"
    paper = "Maracani et al., ICCV 2021"
    needs = ("replay",)
    options_type = RecallOptions
    options: RecallOptions

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        replay = self.inputs.replay
        if replay is None:
            raise InputError(
                "Method 'recall' needs images that stand in for the old classes: give --replay DIR with one folder of "
                "images per old class. Without any, mib and plop learn from the same masks."
            )
        missing = sorted(set(range(1, self.n_old)) - set(replay.class_ids.tolist()))
        if missing:
            raise InputError(
                f"The replay images show none of the old classes with the ids {missing}; add some of each."
            )

    def train(self, mode: bool = True) -> Recall:
        """The encoder does not learn, and no norm layer moves."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return self

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        self.model.backbone.requires_grad_(False)
        self._rates = cfg  # the helper learns at the same rates
        return super().parameter_groups(cfg)

    def prepare(self, data: TrainingSet, stage: Stage) -> TrainingSet:
        """Label the replay images, inpaint the masks, and put both into one set whose batches take turns."""
        replay = self.inputs.replay
        assert replay is not None
        assert data.read_mask is not None
        self._new_data = data
        old = self.old_model.to(stage.device).eval()
        helpers = self._helpers(stage)
        folder = stage.run_dir / "labels"
        folder.mkdir(exist_ok=True)
        files = [
            folder / f"{k}_{i:05d}.png"
            for k, n in (("new", data.size), ("replay", len(replay.class_ids)))
            for i in range(n)
        ]
        palette = default_palette(self.model.n_classes)
        for index, file in enumerate(files):
            if file.is_file():
                continue
            if index < data.size:
                answer = _answer(old, data.read_image(index), stage)
                mask = inpaint_background(data.read_mask(index), answer)
            else:
                mask = self._replay_label(replay, index - data.size, old, helpers, stage)
            write_mask(file, mask.astype(np.uint8), palette)
        return data.changed(
            size=len(files),
            read_image=partial(read_either, data.read_image, replay.read_image, data.size),
            read_mask=partial(read_mask_file, tuple(files)),
            names=None,
            plan=partial(_plan, data.size, len(replay.class_ids), data.seed),
        )

    def _replay_label(
        self,
        replay: Replay,
        index: int,
        old: SegmentationModel,
        helpers: dict[int, tuple[SegmentationModel, list[int]]],
        stage: Stage,
    ) -> npt.NDArray[np.uint8]:
        class_id, image = int(replay.class_ids[index]), replay.read_image(index)
        if class_id not in helpers:
            return _answer(old, image, stage)
        model, ids = helpers[class_id]
        return from_helper(_answer(model, image, stage), ids)

    def _helpers(self, stage: Stage) -> dict[int, tuple[SegmentationModel, list[int]]]:
        """Return class id -> (helper, ids of its classes) for the classes of earlier incremental steps."""
        sizes = self.old_model.architecture.classes_per_step
        found: dict[int, tuple[SegmentationModel, list[int]]] = {}
        for step in range(1, len(sizes)):
            ids = list(range(sum(sizes[:step]), sum(sizes[: step + 1])))
            path = None if self.inputs.kept is None else self.inputs.kept / _helper_file(step)
            if path is None or not path.is_file():
                raise InputError(
                    f"Method 'recall' needs the helper of step {step} to label replay images of its classes, and the "
                    "parent keeps none: its steps were made by another method, or with update.recall.helper=false."
                )
            helper = _new_helper(self.old_model, len(ids))
            helper.load_state_dict(load_file(path), strict=False)
            found |= dict.fromkeys(ids, (helper.to(stage.device).eval(), ids))
        return found

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        x = self.model.normalise(batch["image"])
        with torch.no_grad():
            body = self.model.backbone(x)
        logits = self.at_pixels(self.model.classify(body), batch)
        return {"ce": seen_cross_entropy(logits, batch["mask"], seen_ids=range(self.model.n_classes))}

    def finish(self, data: TrainingSet, stage: Stage) -> None:  # noqa: ARG002
        self.model.backbone.requires_grad_(True)
        self._helper: SegmentationModel | None = None
        if self.options.helper:
            ids = range(self.n_old, self.model.n_classes)
            assert self._new_data.read_mask is not None
            helper = HelperDecoder(self.model, n_classes=len(ids))
            assert self._new_data.read_mask is not None
            read_mask = partial(_read_helper_labels, self._new_data.read_mask, list(ids))
            stage.fit("helper", helper, self._new_data.changed(read_mask=read_mask), self._rates)
            self._helper = helper.model

    def keep(self, folder: Path) -> None:
        sizes = self.old_model.architecture.classes_per_step
        for step in range(1, len(sizes)):  # earlier helpers travel on
            assert self.inputs.kept is not None
            (folder / _helper_file(step)).write_bytes((self.inputs.kept / _helper_file(step)).read_bytes())
        if self._helper is not None:
            state = {
                k: v.cpu().contiguous() for k, v in self._helper.state_dict().items() if not k.startswith("backbone.")
            }
            save_file(state, folder / _helper_file(len(sizes)))


class HelperDecoder(Method):
    """Head and classifier of one step's classes on the frozen encoder; everything else is background to it."""

    name = "helper"
    supervision = "masks"
    idea = "labels replay images of one step's classes"
    paper = "Maracani et al., ICCV 2021"

    def __init__(self, model: SegmentationModel, *, n_classes: int) -> None:
        super().__init__(StepContext(_new_helper(model, n_classes), None, UpdateConfig()))
        self.n_channels = n_classes + 1

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        self.model.backbone.requires_grad_(False)
        return super().parameter_groups(cfg)

    def train(self, mode: bool = True) -> HelperDecoder:
        super().train(mode)
        self.model.backbone.eval()
        return self

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        with torch.no_grad():
            body = self.model.backbone(self.model.normalise(batch["image"]))
        logits = self.at_pixels(self.model.classify(body), batch)
        return {"ce": seen_cross_entropy(logits, batch["mask"], seen_ids=range(self.n_channels))}


def _new_helper(model: SegmentationModel, n_classes: int) -> SegmentationModel:
    """Return a model with the encoder of ``model``, a new head, and background plus ``n_classes`` outputs."""
    architecture = model.architecture.model_copy(update={"classes_per_step": (n_classes + 1,)})
    helper = SegmentationModel(architecture, model.preprocessing)
    helper.backbone.load_state_dict(model.backbone.state_dict())
    return helper


def _helper_file(step: int) -> str:
    return f"helper_step{step}.safetensors"


@torch.no_grad()
def _answer(model: SegmentationModel, image: npt.NDArray[np.uint8], stage: Stage) -> npt.NDArray[np.uint8]:
    """Return the arg-max of ``model`` on one image (H, W, 3)."""
    pixels = as_batch(image, stage.device)
    with stage.autocast():
        logits = model(pixels).float()
    answer: npt.NDArray[np.uint8] = (
        model.upsample(logits, image.shape[0], image.shape[1])[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    )
    return answer


def _read_helper_labels(read_mask: ImageReader, ids: list[int], index: int) -> npt.NDArray[np.uint8]:
    return helper_labels(read_mask(index), ids)


def _plan(n_new: int, n_replay: int, seed: int, epoch: int, batch_size: int) -> list[Sequence[int]]:
    """Batches of an epoch: every new image once, in turn with as many batches of replayed ones."""
    rng = np.random.Generator(np.random.PCG64([seed, 3, epoch]))
    new, old = rng.permutation(n_new).tolist(), rng.permutation(n_replay).tolist()
    order = replay_order(
        n_new=n_new,
        n_replay=n_replay,
        take_new=batch_size,
        take_replay=batch_size,
        batch_size=batch_size,
        n_batches=2 * max(1, n_new // batch_size),
    )
    return [[n_new + old[i] if kind else new[i] for kind, i in batch.tolist()] for batch in order]
