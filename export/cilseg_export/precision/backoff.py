"""Leave the fewest layers in float with which INT8 keeps its limits (docs/decisions/0016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cilseg.errors import ParityError
from cilseg_export.precision.int8 import quantisable_layers, quantise
from cilseg_export.precision.sensitivity import LayerLoss
from cilseg_export.precision.source import FloatGraph

Judge = Callable[[Any], Sequence[str]]
"""A quantised graph (``onnx.ModelProto``) -> in words where it goes beyond the limits; empty where it does not."""


@dataclass(frozen=True)
class Trial:
    """One number of layers left in float, and what was wrong with it."""

    in_float: int
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BackOff:
    """A quantised graph within the limits, and how it was found."""

    model: Any
    kept: tuple[LayerLoss, ...]
    """The layers left in float, the worst first."""
    trials: tuple[Trial, ...]
    n_layers: int
    """All layers of the network, the classifiers (always float) included."""
    n_classifiers: int

    @property
    def share_in_float(self) -> float:
        """Share of the layers that stay float, the classifiers included."""
        return (len(self.kept) + self.n_classifiers) / self.n_layers

    def to_json(self) -> dict[str, Any]:
        return {
            "kept_in_float": [loss.layer for loss in self.kept],
            "layers": self.n_layers,
            "classifiers_in_float": self.n_classifiers,
            "share_in_float": round(self.share_in_float, 4),
            "trials": [{"in_float": t.in_float, "problems": list(t.problems)} for t in self.trials],
        }


def back_off(
    source: FloatGraph, ranges: Any, losses: Sequence[LayerLoss], judge: Judge, *, symmetric: bool = False
) -> BackOff:
    """Quantise with the fewest of the worst layers in float that ``judge`` accepts.

    Tries 0, 1, 2, 4, 8, ... layers, the worst first, until one is accepted, and halves the gap below it. Every answer
    comes from a graph that was judged; more layers in float are never assumed to be better.

    Args:
        source: the float32 graph.
        ranges: of its activations, from the calibration.
        losses: of its layers, the worst first.
        judge: compares a quantised graph with the network.
        symmetric: see :func:`cilseg_export.precision.int8.quantise`.

    Raises:
        ParityError: not accepted with every layer in float either.
    """
    trials: list[Trial] = []
    accepted: dict[int, Any] = {}

    def fits(count: int) -> bool:
        keep = [loss.node for loss in losses[:count]]
        model = quantise(source, ranges, keep=keep, symmetric=symmetric)
        problems = tuple(judge(model))
        trials.append(Trial(count, problems))
        if not problems:
            accepted[count] = model
        return not problems

    failed, count = -1, 0
    while not fits(count):
        if count == len(losses):
            raise ParityError(
                f"INT8 stays outside its limits with all {len(losses)} layers in float: "
                f"{'; '.join(trials[-1].problems)}. The limits leave no room for rounding: check them, and "
                "the annotated images."
            )
        failed, count = count, min(max(1, 2 * count), len(losses))
    while count - failed > 1:
        middle = (failed + count) // 2
        if fits(middle):
            count = middle
        else:
            failed = middle
    n_layers = len(source.parts.layers)
    return BackOff(
        model=accepted[count],
        kept=tuple(losses[:count]),
        trials=tuple(trials),
        n_layers=n_layers,
        n_classifiers=n_layers - len(quantisable_layers(source)),
    )
