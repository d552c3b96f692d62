"""Weight fusion: a candidate that forgot is moved back towards its parent, and judged again.

The parameters that both have are interpolated, ``(1 - share) parent + share candidate``; the classifiers of new classes
are the candidate's. Both lie in one basin of the loss when the candidate was trained from the parent, which is what
makes interpolation work (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022; for class-incremental
segmentation: "Endpoints Weight Fusion", Xiao et al., CVPR 2023).

The share is chosen on one half of the gate set and judged on the other, so that the choice does not flatter the
verdict.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cilseg.bundle import GateSet
from cilseg.errors import InputError
from cilseg.evaluate.policy import GatePolicy
from cilseg.evaluate.run import evaluate_source
from cilseg.evaluate.scoring import Scores
from cilseg.models.inference import InferenceGraph
from cilseg.models.segmenter import SegmentationModel
from cilseg.registry import Registry, Version
from cilseg.update.bundle import model_of, register_copy
from cilseg.update.gate_set import halves, open_gate_set

SHARES = (0.8, 0.6, 0.4, 0.2)
"""Shares of the candidate that are tried, the one that keeps most of what it learned first."""
_LOGGER = logging.getLogger(__name__)


def fused_state(parent: Mapping[str, Tensor], candidate: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Return the state between two models: ``(1 - share) parent + share candidate`` where both have a tensor.

    Tensors that only the candidate has (the new classifier) and counters (integers) are the candidate's.

    Raises:
        InputError: ``share`` is outside 0 .. 1, the parent has tensors that the candidate lacks, or shapes differ.
    """
    if not 0 <= share <= 1:
        raise InputError(f"A share of the candidate lies between 0 and 1, got {share}.")
    strange = sorted(k for k, v in parent.items() if k not in candidate or candidate[k].shape != v.shape)
    if strange:
        raise InputError(
            f"The two models cannot be fused: {', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''} differ. "
            "Fuse a candidate with the parent it was trained from."
        )
    fused = {}
    for name, tensor in candidate.items():
        if name in parent and tensor.is_floating_point():
            fused[name] = torch.lerp(parent[name], tensor, share)
        else:
            fused[name] = tensor.clone()
    return fused


@dataclass(frozen=True)
class ShareTried:
    """A share of the candidate on the first half of the gate set; points of IoU."""

    share: float
    worst_change: float
    """The largest loss of an old class (below 0), or the smallest gain."""
    new_iou: float | None


def choose_share(tried: list[ShareTried], *, tolerance_points: float) -> ShareTried | None:
    """Return the largest share whose old classes lose less than half the tolerance, else the one that loses least.

    None where even that one loses the tolerance: fusion does not help then.
    """
    for entry in sorted(tried, key=lambda t: -t.share):
        if entry.worst_change > -tolerance_points / 2:
            return entry
    best = max(tried, key=lambda t: (t.worst_change, t.share))
    return best if best.worst_change > -tolerance_points else None


def fuse_version(
    registry: Registry,
    candidate: Version,
    reference: Version,
    *,
    policy: GatePolicy,
    gate_set: GateSet | None = None,
) -> Version | None:
    """Register the best interpolation between ``reference`` and ``candidate``; None where none keeps the old classes.

    Args:
        gate_set: images to choose on instead of those that the candidate records.

    Raises:
        InputError: no gate set, or the candidate was not trained from ``reference``.
    """
    wanted = gate_set or candidate.manifest.gate_set
    if wanted is None:
        raise InputError(f"{candidate.ref} records no gate set to choose the fusion on. Give --data DIR --split NAME.")
    classes, old = candidate.manifest.class_set, reference.manifest.class_set
    if classes.names[: len(old)] != old.names:
        raise InputError(f"{candidate.ref} does not continue the classes of {reference.ref}, so the two are not fused.")
    source = open_gate_set(wanted)
    chosen_on = source.subset(halves(source)[0])
    before, after = model_of(reference), model_of(candidate)

    def iou(model: SegmentationModel) -> npt.NDArray[np.float64]:
        graph = InferenceGraph(model, candidate.manifest.preprocessing).eval()
        evaluation = evaluate_source(graph.predict, chosen_on, classes, annotated=list(wanted.classes))
        return 100 * Scores(evaluation.confusion).class_iou

    kept, tried = iou(before), []
    fused = candidate_twin(after)
    for share in SHARES:
        fused.load_state_dict(fused_state(before.state_dict(), after.state_dict(), share=share))
        found = iou(fused)
        change = (found - kept)[1 : len(old)]
        new = found[len(old) :]
        entry = ShareTried(
            share,
            float(np.nanmin(change)) if not np.isnan(change).all() else 0.0,
            None if np.isnan(new).all() else float(np.nanmean(new)),
        )
        _LOGGER.info("Fusion with %.0f %% of %s: worst old class %+.1f", 100 * share, candidate.ref, entry.worst_change)
        tried.append(entry)
    best = choose_share(tried, tolerance_points=policy.tolerance_points)
    if best is None:
        return None
    fused.load_state_dict(fused_state(before.state_dict(), after.state_dict(), share=best.share))
    fusion = {
        "of": candidate.digest,
        "share": best.share,
        "gate_set": wanted.ids_sha256,
        "chosen_on_images": len(chosen_on),
        "tried": [[t.share, round(t.worst_change, 3)] for t in tried],
    }
    with tempfile.TemporaryDirectory(prefix="cilseg-fuse-") as temporary:
        return register_copy(
            registry, candidate, fused, parent=reference, data={"fusion": fusion}, directory=Path(temporary)
        )


def candidate_twin(model: SegmentationModel) -> SegmentationModel:
    """Return an independent copy of ``model`` in evaluation mode."""
    twin: SegmentationModel = model.extended(0)
    return twin.eval()
