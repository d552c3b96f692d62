"""The reference of every parity check: the network itself, run by torch in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cilseg.errors import InputError


class SegmentationGraph(Protocol):
    """What export and parity need of a graph (an ``nn.Module``; ``cilseg.models.inference.InferenceGraph`` has it)."""

    outputs: tuple[str, ...]

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map ``(N, H, W, 3)`` uint8 to the outputs named by ``outputs``."""
        ...

    def stride_logits(self, image: Tensor) -> Tensor:
        """Map ``(N, H, W, 3)`` uint8 to logits ``(N, C, h, w)``."""
        ...

    def upsample(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Map logits ``(N, C, h, w)`` to ``(N, C, height, width)``."""
        ...


@dataclass(frozen=True)
class Reference:
    """What torch says about one image: logits ``(C, h, w)`` at output stride, everything else ``(H, W)``."""

    logits: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    """Best logit of a pixel minus its second best; infinite for a network with one class."""
    logit_range: float
    """Largest minus smallest logit of the image, over all pixels and classes."""

    def output(self, name: str) -> npt.NDArray[Any]:
        """Return the array that the graph output ``name`` must equal."""
        outputs: dict[str, npt.NDArray[Any]] = {
            "mask": self.mask,
            "confidence": self.confidence,
            "logits": self.logits,
        }
        return outputs[name]


class TorchSession:
    """Answers single images with the graph's own torch code.

    Raises:
        InputError: the graph is no module, is in training mode, or holds weights that are not float32.
    """

    def __init__(self, graph: SegmentationGraph) -> None:
        self._device = check_ready(graph)
        self._graph = graph

    def answer(self, image: npt.NDArray[np.uint8]) -> Reference:
        """Run one image ``(H, W, 3)`` uint8 RGB on its own."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.array(image)[None]).to(self._device)
            logits = self._graph.stride_logits(batch)
            pixel_logits = self._graph.upsample(logits, image.shape[0], image.shape[1])
            mask = pixel_logits.argmax(dim=1).to(torch.uint8)
            confidence = pixel_logits.softmax(dim=1).amax(dim=1)
            best = pixel_logits.topk(min(2, pixel_logits.shape[1]), dim=1).values
            margin = best[:, 0] - best[:, 1] if best.shape[1] == 2 else torch.full_like(best[:, 0], torch.inf)
            logit_range = float(pixel_logits.max() - pixel_logits.min())
        return Reference(
            logits=logits[0].cpu().numpy(),
            mask=mask[0].cpu().numpy(),
            confidence=confidence[0].cpu().numpy(),
            margin=margin[0].cpu().numpy(),
            logit_range=logit_range,
        )

    @property
    def n_classes(self) -> int:
        """Channels of the logits, found by running a small image."""
        return len(self.answer(np.zeros((33, 33, 3), dtype=np.uint8)).logits)


def check_ready(graph: SegmentationGraph) -> torch.device:
    """Check that ``graph`` can be exported or serve as reference; return its device.

    Raises:
        InputError: no module, in training mode, or weights that are not float32.
    """
    if not isinstance(graph, nn.Module):
        raise InputError(f"A graph is a torch.nn.Module, got {type(graph).__name__}. Wrap the model in InferenceGraph.")
    training = [name or "the graph itself" for name, module in graph.named_modules() if module.training]
    if training:
        raise InputError(
            f"The graph is in training mode ({len(training)} modules, first: {training[0]}), its answers would depend "
            "on the batch. Call graph.eval() first."
        )
    tensors = [*graph.named_parameters(), *graph.named_buffers()]
    odd = {name: t.dtype for name, t in tensors if t.is_floating_point() and t.dtype != torch.float32}
    if odd:
        name, dtype = next(iter(odd.items()))
        raise InputError(
            f"The graph holds {len(odd)} tensors that are not float32 (first: {name} is {dtype}). "
            "Call graph.float() first; lower precision is a later step on the ONNX file."
        )
    return tensors[0][1].device if tensors else torch.device("cpu")
