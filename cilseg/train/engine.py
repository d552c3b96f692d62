"""The training loop; the only module that knows lightning-fabric."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cilseg.models.torchvision_guard  # noqa: F401  must come before lightning_fabric
from cilseg.bundle import write_file_atomically
from cilseg.config import OptimiserConfig, RuntimeConfig
from cilseg.errors import InputError, TrainingError
from cilseg.methods.base import Method
from cilseg.train.checkpoint import Progress, load_state, save_state
from cilseg.train.dataset import TrainingSet, epoch_batches
from cilseg.train.schedules import lr_factor

from lightning_fabric import Fabric  # isort: skip  (after the guard)

_LOGGER = logging.getLogger(__name__)
RESUME_FILE = "resume.safetensors"
LOG_FILE = "log.jsonl"
_ADVICE = "Lower the learning rates or clip_norm; the last good state, if there was one, is in resume.safetensors."


@dataclass(frozen=True)
class Tick:
    """One finished iteration, for progress bars."""

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    losses: dict[str, float]
    lr: float


OnTick = Callable[[Tick], None]


def pick_precision(device_type: str) -> str:
    """Return the precision for a device: bfloat16 autocast where the hardware computes it, else float32."""
    if device_type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if device_type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def device_of(runtime: RuntimeConfig) -> torch.device:
    """Return the device that ``runtime`` runs on; ``auto`` takes CUDA where there is one, else the CPU.

    Raises:
        InputError: the device asked for is not there.
    """
    device = runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is cuda, but torch sees no CUDA device. Use device=auto or cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("runtime.device is mps, but torch sees no Apple GPU. Use device=auto or cpu.")
    return torch.device(device)


def autocast_of(runtime: RuntimeConfig) -> AbstractContextManager[Any]:
    """Return the context of the run's precision, for passes outside the loop."""
    device = device_of(runtime).type
    precision = pick_precision(device) if runtime.precision == "auto" else runtime.precision
    if precision == "32-true":
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float16)


def make_fabric(runtime: RuntimeConfig) -> Fabric:
    """Return a launched Fabric for ``runtime``; device and precision choose themselves when ``auto``.

    Raises:
        InputError: the device asked for is not there.
    """
    device = device_of(runtime).type
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    precision = pick_precision(device) if runtime.precision == "auto" else runtime.precision
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces devices and precision on stderr
    fabric = Fabric(
        accelerator=device,
        devices=runtime.devices,
        strategy=runtime.strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def fit(
    method: Method,
    data: TrainingSet,
    optimiser_config: OptimiserConfig,
    *,
    run_dir: Path,
    run_id: str,
    runtime: RuntimeConfig,
    resume: bool = False,
    on_tick: OnTick | None = None,
) -> Progress:
    """Train ``method`` on ``data`` and leave the weights in it.

    Writes ``log.jsonl`` (one line per iteration) and ``resume.safetensors`` into ``run_dir``.

    Args:
        resume: continue from ``resume.safetensors`` where there is one; the result equals that of an uninterrupted
            run bit for bit on the CPU at an equal number of threads.

    Raises:
        TrainingError: a loss, a gradient or a weight is not finite; the last resume file is kept.
        ArtifactError: the resume file is damaged or belongs to another run.
        InputError: the device is not there, or batches of one image that norm layers cannot learn from.
    """
    cfg = optimiser_config
    fabric = make_fabric(runtime)
    _check_batch_size(
        method, data.batch_indices(0, cfg.batch_size, rank=fabric.world_size - 1, world=fabric.world_size)
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    groups = method.parameter_groups(cfg)
    base_rates = [float(g["lr"]) for g in groups]
    optimiser = torch.optim.SGD(
        groups, lr=cfg.lr_body, momentum=cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.momentum > 0
    )
    if fabric.device.type == "cpu":
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained, optimiser = fabric.setup(method, optimiser)
    progress = Progress(run_id)
    resume_path, log_path = run_dir / RESUME_FILE, run_dir / LOG_FILE
    if resume and resume_path.is_file():
        progress = load_state(resume_path, model=method, optimiser=optimiser, run_id=run_id)
        _truncate_log(log_path, progress.iteration)
    else:
        resume_path.unlink(missing_ok=True)  # else a later resume would find the old state beside the new log
        log_path.write_text("")
    per_epoch = data.iterations(cfg.batch_size)
    total = per_epoch * cfg.epochs
    started, last_save = time.monotonic() - progress.elapsed_s, time.monotonic()
    with log_path.open("a", buffering=1, encoding="utf-8") as log:
        while progress.epoch < cfg.epochs:
            epoch, start = progress.epoch, progress.iteration_in_epoch
            method.train()
            method.on_epoch(epoch)
            for batch in epoch_batches(
                data,
                epoch,
                batch_size=cfg.batch_size,
                start=start,
                workers=runtime.workers,
                rank=fabric.global_rank,
                world=fabric.world_size,
            ):
                factor = lr_factor(
                    progress.iteration,
                    total_iterations=total,
                    schedule=cfg.schedule,
                    power=cfg.power,
                    hold_iterations=method.warm_up_epochs * per_epoch,
                )
                for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
                values = _step(fabric, trained, optimiser, fabric.to_device(batch), epoch, cfg)
                done_in_epoch = progress.iteration_in_epoch + 1
                progress = replace(
                    progress,
                    iteration=progress.iteration + 1,
                    iteration_in_epoch=done_in_epoch,
                    elapsed_s=time.monotonic() - started,
                )
                log.write(
                    json.dumps(
                        {
                            "iteration": progress.iteration,
                            "epoch": epoch,
                            "lr_factor": round(factor, 6),
                            "elapsed_s": round(progress.elapsed_s, 2),
                            **{k: round(v, 6) for k, v in values.items()},
                        }
                    )
                    + "\n"
                )
                if on_tick is not None:
                    on_tick(Tick(epoch + 1, cfg.epochs, progress.iteration, total, values, base_rates[0] * factor))
                if time.monotonic() - last_save > runtime.checkpoint_every_s and fabric.global_rank == 0:
                    log.flush()
                    _save(resume_path, progress, method, optimiser)
                    last_save = time.monotonic()
            progress = replace(progress, epoch=epoch + 1, iteration_in_epoch=0)
            log.flush()
            os.fsync(log.fileno())
            if fabric.global_rank == 0:
                _save(resume_path, progress, method, optimiser)
                last_save = time.monotonic()
    method.eval()
    return progress


def _step(
    fabric: Fabric, trained: Any, optimiser: Any, batch: Any, epoch: int, cfg: OptimiserConfig
) -> dict[str, float]:
    losses: dict[str, Tensor] = trained(batch, epoch)
    total = torch.stack([v.float() for v in losses.values()]).sum()
    values = {"loss": float(total.detach()), **{k: float(v.detach()) for k, v in losses.items()}}
    if not torch.isfinite(total):
        raise TrainingError(f"The loss is not finite in epoch {epoch + 1}: {values}. {_ADVICE}")
    fabric.backward(total)
    if cfg.clip_norm is not None:
        norm = fabric.clip_gradients(trained, optimiser, max_norm=cfg.clip_norm, error_if_nonfinite=False)
        # A gradient scaler (float16) skips such a step by itself and lowers its scale.
        if norm is not None and not torch.isfinite(norm) and getattr(fabric._precision, "scaler", None) is None:
            raise TrainingError(f"A gradient is not finite in epoch {epoch + 1}: {values}. {_ADVICE}")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return values


def _save(path: Path, progress: Progress, method: Method, optimiser: Any) -> None:
    """Write the resume file, unless a weight is not finite: the last good state must stay."""
    state = method.state_dict()
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise TrainingError(
            f"{len(bad)} of {len(state)} weights are not finite after iteration {progress.iteration}, {bad[0]} first. "
            f"{_ADVICE}"
        )
    save_state(path, progress, model=state, optimiser=optimiser)


def _check_batch_size(method: Method, batches: list[Sequence[int]]) -> None:
    """The pooled branch of the head has one value per image, so its norm layer needs two images to learn from."""
    smallest = min(len(batch) for batch in batches)
    method.train()
    if smallest < 2 and method.model.head.global_pooling_bn.training:
        raise InputError(
            f"A batch holds {smallest} image on one device, but norm layers need at least 2 to learn from. Raise "
            "batch_size, give more images, or keep the norm layers as they are with freeze_norm: true."
        )


def _truncate_log(path: Path, lines: int) -> None:
    """Drop log lines written after the checkpoint that a run resumes from."""
    if path.is_file():
        kept = path.read_text(encoding="utf-8").splitlines()[:lines]
        write_file_atomically(path, "".join(line + "\n" for line in kept).encode())
