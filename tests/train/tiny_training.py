"""A training small enough for tests; as a program, a run that waits to be killed.

python tiny_training.py METHOD SCENES RUN_DIR WORKERS PAUSE_AT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from cilseg.classes import ClassSet
from cilseg.config import ModelConfig, OptimiserConfig, RuntimeConfig, UpdateConfig
from cilseg.data.source import open_source
from cilseg.methods import Method, StepContext, Supervised
from cilseg.methods.wilson import Wilson
from cilseg.models.build import new_model
from cilseg.train.dataset import TrainingSet
from cilseg.train.engine import OnTick, fit
from cilseg.train.steps import masked_set, tagged_files

N_IMAGES = 16


def optimiser_config(**changes: object) -> OptimiserConfig:
    """Three epochs of four iterations with high rates."""
    rates = dict.fromkeys(("lr_body", "lr_head", "lr_classifier", "lr_new_classifier", "lr_localizer"), 0.05)
    return OptimiserConfig(**{"epochs": 3, "batch_size": 4, "crop_px": 64, **rates, **changes})


def runtime_config(**changes: object) -> RuntimeConfig:
    return RuntimeConfig(**{"device": "cpu", "precision": "32-true", "threads": 1, **changes})


def class_names(scenes: Path) -> list[str]:
    return (scenes / "labels.txt").read_text().split()[1:]


def make_method(kind: str, scenes: Path, *, seed: int = 0) -> Method:
    """A new method "base" or "wilson" (two old classes, the last one new)."""
    names = class_names(scenes)
    config = ModelConfig(backbone="test_resnet", output_stride=8, head_channels=16, head_dilations=(1, 2))
    if kind == "base":
        return Supervised(StepContext(new_model(config, ClassSet.base(names), seed=seed), None, UpdateConfig()))
    parent = new_model(config, ClassSet.base(names[:-1]), seed=seed)
    torch.manual_seed(seed)
    settings = UpdateConfig(wilson={"warm_up_epochs": 1})
    return Wilson(StepContext(parent.extended(1), parent, settings))


def make_data(kind: str, scenes: Path, config: OptimiserConfig, *, seed: int = 0) -> TrainingSet:
    source = open_source(scenes, split="train")
    names = class_names(scenes)
    if kind == "base":
        return masked_set(source, ClassSet.base(names), config, visible=names, seed=seed)
    states = torch.tensor([[int(name in source.classes_in(i)) for name in names] for i in range(len(source))])
    return tagged_files(source.image_paths, states.to(torch.int8).numpy(), config, seed=seed)


def train(
    kind: str,
    scenes: Path,
    run_dir: Path,
    *,
    config: OptimiserConfig | None = None,
    runtime: RuntimeConfig | None = None,
    resume: bool = False,
    seed: int = 0,
    on_tick: OnTick | None = None,
    method: Method | None = None,
    run_id: str = "tiny",
) -> Method:
    """Train and return the method."""
    config = config or optimiser_config()
    method = method or make_method(kind, scenes, seed=seed)
    torch.manual_seed(seed)
    data = make_data(kind, scenes, config, seed=seed)
    fit(
        method,
        data,
        config,
        run_dir=run_dir,
        run_id=run_id,
        runtime=runtime or runtime_config(),
        resume=resume,
        on_tick=on_tick,
    )
    return method


if __name__ == "__main__":
    kind, scenes, run_dir, workers, pause_at = sys.argv[1:]

    def pause(tick: object) -> None:
        """Wait for the end between a log line and its checkpoint."""
        if getattr(tick, "iteration") == int(pause_at):  # noqa: B009
            time.sleep(300)

    train(
        kind,
        Path(scenes),
        Path(run_dir),
        runtime=runtime_config(workers=int(workers), checkpoint_every_s=0),
        on_tick=pause,
    )
