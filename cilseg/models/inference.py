"""The graph that is exported, evaluated and served: uint8 image in, class ids out.

Nothing is computed twice: padding, normalisation and upsampling are the model's own (``cilseg.models.segmenter``), the
resizing around the graph is ``cilseg_serve.preprocessing``, the same that serving uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cilseg.bundle import Preprocessing
from cilseg.errors import InputError
from cilseg_serve.preprocessing import prepare, restore_mask

OUTPUTS = ("mask", "confidence", "logits")
"""Every output of the graph contract, in the order in which a graph returns those it has."""


class StrideModel(Protocol):
    """What the graph needs of a model (``SegmentationModel`` has it)."""

    def __call__(self, image: Tensor) -> Tensor:
        """Map RGB ``(N, 3, H, W)`` on 0-255 to logits ``(N, C, h, w)`` at output stride."""
        ...

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Map logits ``(N, C, h, w)`` to ``(N, C, height, width)``."""
        ...


class InferenceGraph(nn.Module):
    """Image ``(N, H, W, 3)`` uint8 RGB to a tuple of the chosen outputs, always in the order of :data:`OUTPUTS`.

    - ``mask`` ``(N, H, W)`` uint8: the class with the largest logit, also for models trained with one binary loss per
      class;
    - ``confidence`` ``(N, H, W)`` float32: the soft-max probability of that class;
    - ``logits`` ``(N, C, h, w)`` float32 at output stride.

    Any ``H`` and ``W`` work. Construction leaves the training mode of the model as it is; :meth:`predict` always
    answers in evaluation mode.

    Args:
        model: the network (an ``nn.Module``); shared, not copied.
        preprocessing: how :meth:`predict` resizes an image for the network.
        outputs: which outputs :meth:`forward` returns.

    Raises:
        InputError: no output, an unknown one, or one named twice.
    """

    def __init__(self, model: StrideModel, preprocessing: Preprocessing, *, outputs: Sequence[str] = ("mask",)) -> None:
        super().__init__()
        wanted = tuple(outputs)
        if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= set(OUTPUTS):
            raise InputError(f"Outputs of a graph are some of {', '.join(OUTPUTS)}, each once; got {list(wanted)}.")
        self.model = model
        self.preprocessing = preprocessing
        self.outputs = tuple(name for name in OUTPUTS if name in wanted)
        if isinstance(model, nn.Module):
            self.training = model.training

    def stride_logits(self, image: Tensor) -> Tensor:
        """Map ``(N, H, W, 3)`` uint8 to logits ``(N, C, h, w)`` at output stride, ``h = ceil(H / s)``."""
        return self.model(image.permute(0, 3, 1, 2))

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Map logits ``(N, C, h, w)`` to the pixels of the image, ``(N, C, height, width)``."""
        return self.model.upsample(logits, height, width)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.stride_logits(image)
        answers: list[Tensor] = []
        if self.outputs != ("logits",):
            pixel_logits = self.upsample(logits, image.shape[1], image.shape[2])
        if "mask" in self.outputs:
            answers.append(pixel_logits.argmax(dim=1).to(torch.uint8))
        if "confidence" in self.outputs:
            answers.append(pixel_logits.softmax(dim=1).amax(dim=1))
        if "logits" in self.outputs:
            answers.append(logits)
        return tuple(answers)

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one image ``(H, W, 3)`` uint8 RGB into class ids ``(H, W)`` uint8, at the image's own size.

        Resizes as the preprocessing says, and back by nearest pixel. Training modes (frozen norms too) are as before
        afterwards.

        Raises:
            InputError: not ``(H, W, 3)`` uint8.
        """
        mask = self._pixel_logits(image).argmax(dim=0).to(torch.uint8).cpu().numpy()
        return restore_mask(mask, image.shape[0], image.shape[1])

    def predict_sure(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return :meth:`predict` and the soft-max probability of the answer, ``(H, W)`` float32.

        Raises:
            InputError: as :meth:`predict`.
        """
        logits = self._pixel_logits(image)
        mask = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        confidence = logits.softmax(dim=0).amax(dim=0).float().cpu().numpy()
        height, width = image.shape[:2]
        return restore_mask(mask, height, width), restore_mask(confidence, height, width)

    def class_scores(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return ``(C,)`` the highest soft-max probability of each class anywhere in the image.

        Raises:
            InputError: as :meth:`predict`.
        """
        return np.asarray(self._pixel_logits(image).softmax(dim=0).amax(dim=(1, 2)).double().cpu().numpy())

    def _pixel_logits(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Return logits ``(C, h, w)`` at the size that the network sees, in evaluation mode."""
        prepared = prepare(image, self.preprocessing)
        modes = [(module, module.training) for module in self.modules()]
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        try:
            self.eval()
            with torch.inference_mode():
                batch = torch.from_numpy(np.array(prepared)[None]).to(device)
                return self.upsample(self.stride_logits(batch), batch.shape[1], batch.shape[2])[0]
        finally:
            for module, training in modes:
                module.training = training
