"""Resume state: tensors in safetensors, counters in its JSON header; written atomically, never a pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cilseg.bundle import write_file_atomically
from cilseg.errors import ArtifactError

_FORMAT = "cilseg.resume/1"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: finished epochs, finished iterations inside the current one, and lines of its log."""

    run_id: str
    epoch: int = 0
    iteration_in_epoch: int = 0
    iteration: int = 0
    elapsed_s: float = 0.0


def save_state(path: Path, progress: Progress, *, model: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Write everything a bit-for-bit continuation needs: weights, optimiser buffers, random state, counters."""
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.items()}
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    for index, slots in state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value.detach().cpu().contiguous()
    tensors["random.torch"] = torch.get_rng_state()
    write_file_atomically(path, save(tensors, {"format": _FORMAT, "progress": json.dumps(asdict(progress))}))


def load_state(path: Path, *, model: torch.nn.Module, optimiser: torch.optim.Optimizer, run_id: str) -> Progress:
    """Load what :func:`save_state` wrote into ``model`` and ``optimiser``; return where the run stood.

    Raises:
        ArtifactError: the file is truncated, or belongs to a run with other settings.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as exc:
        raise ArtifactError(
            f"Resume file {path} cannot be read ({exc}). Delete it and start the run again without --resume."
        ) from exc
    if metadata.get("format") != _FORMAT:
        raise ArtifactError(f"{path} is no resume file of this version of cilseg (format {metadata.get('format')!r}).")
    progress = Progress(**json.loads(metadata["progress"]))
    if progress.run_id != run_id:
        raise ArtifactError(
            f"{path} belongs to a run with other data or settings ({progress.run_id} instead of {run_id}). "
            "Repeat the command with the settings of that run, or start anew without --resume."
        )
    own = model.state_dict()
    unfit = [k for k, v in own.items() if f"model.{k}" not in tensors or tensors[f"model.{k}"].shape != v.shape]
    if unfit:
        raise ArtifactError(
            f"{path} does not fit the network: {len(unfit)} tensors missing or of another shape {unfit[:3]}; another "
            "version of cilseg wrote it. Start the run again without --resume."
        )
    for key in own:
        own[key].copy_(tensors[f"model.{key}"])
    _restore_optimiser(optimiser, tensors)
    torch.set_rng_state(tensors["random.torch"])
    return progress


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    payload = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    payload["state"] = state
    optimiser.load_state_dict(payload)
