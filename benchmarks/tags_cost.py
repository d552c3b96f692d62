"""What each part of the default method costs: python -m benchmarks.tags_cost

One thread, MobileNetV2 DeepLabV3 as in the protocol ``voc-animals-beyond``, random weights and images: an iteration of
either round (forward, loss, backward; batch 16, 224 px) and the labels of an image (240 x 320 px), each with the part
and without it, interleaved in one process. Seconds of an update are these times the numbers of that protocol: 319
tagged and 160 absent-tagged images, ten epochs a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import write_record
from benchmarks.training_iteration import mobilenetv2
from cilseg.config import UpdateConfig
from cilseg.data.transforms import TrainTransform
from cilseg.methods import StepContext
from cilseg.methods.base import Method, Stage
from cilseg.methods.look_alikes import measured_weights
from cilseg.methods.tags import Tags
from cilseg.train.dataset import Batch, TrainingSet
from cilseg.train.engine import pick_precision

ROUNDS, WARM_UP = 15, 3
TAGGED, ABSENT, STORED, EPOCHS, BATCH = 319, 160, 50, 10, 16
N_OLD, N_NEW = 5, 2


def iterations(images: int) -> int:
    """Return how many iterations a round has."""
    return images // BATCH * EPOCHS


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = pick_precision("cpu") == "bf16-mixed"
    autocast: Callable[[], AbstractContextManager[Any]] = (
        partial(torch.autocast, "cpu", dtype=torch.bfloat16) if bf16 else nullcontext
    )
    parent = mobilenetv2(N_OLD)
    tags = torch.zeros(BATCH, N_OLD - 1 + N_NEW, dtype=torch.int8)
    tags[:8, -1], tags[4:10, -2] = 1, 1
    mask = torch.full((BATCH, 224, 224), 254)
    mask[:10, 60:160, 60:160] = N_OLD
    batch: Batch = {
        "image": torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8),
        "mask": mask,
        "tags": tags,
        "saliency": torch.full((BATCH, 224, 224), 255, dtype=torch.uint8),
    }
    images = [np.random.default_rng(i).integers(0, 256, (240, 320, 3), dtype=np.uint8) for i in range(8)]
    states = np.repeat(tags[:1].numpy(), len(images), axis=0)
    data = TrainingSet(len(images), images.__getitem__, TrainTransform(224), seed=0, tags=states)
    stage = Stage(Path(), 0, torch.device("cpu"), autocast, lambda *_: None)
    weights = torch.full((N_NEW, N_OLD), 0.5)
    prior = torch.ones(1, N_NEW, 240, 320)

    def method(**options: Any) -> Tags:
        model = parent.extended(N_NEW)
        found = Tags(StepContext(model, parent, UpdateConfig(tags=options)))
        for network in (model, parent, found._first[0].model):
            network.backbone.freeze(3)
            network.freeze_norm(True)
        found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return found

    def iteration(of: Method) -> None:
        of.train()
        with autocast():
            loss = torch.stack([value.float() for value in of(batch, EPOCHS).values()]).sum()
        loss.backward()
        of.zero_grad(set_to_none=True)

    def label(of: Tags, *, look_alikes: bool = True, prior: torch.Tensor | None = None) -> None:
        with autocast():
            of._label(of._first[0].eval(), images[0], tags[0].float(), weights if look_alikes else None, prior)

    def measure(of: Tags) -> None:
        measured_weights(of._first[0].eval(), parent, data, stage, share=0.5)

    usual = method()
    loose = method(exclusive=False, first={"suppress_claimed": False})
    one_scale = method(scales=[1.0])
    timed: dict[str, Callable[[], None]] = {
        "round one": partial(iteration, usual._first[0]),
        "round one, not exclusive": partial(iteration, loose._first[0]),
        "round two": partial(iteration, usual),
        "round two, not exclusive": partial(iteration, loose),
        "label": partial(label, usual),
        "label, no look-alikes": partial(label, usual, look_alikes=False),
        "label, one scale": partial(label, one_scale),
        "label, with a prior": partial(label, usual, prior=prior),
        "look-alikes of 8 images": partial(measure, usual),
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(WARM_UP + ROUNDS):
        for name, work in timed.items():
            started = time.perf_counter()
            work()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    rows, table = [], ["| one | p10 s | median s | p90 s |", "|---|---:|---:|---:|"]
    for name, values in seconds.items():
        low, *_, high = statistics.quantiles(values, n=10)
        rows.append({"what": name, "p10_s": low, "median_s": middle[name], "p90_s": high})
        table.append(f"| {name} | {low:.3f} | {middle[name]:.3f} | {high:.3f} |")
    both, alone = iterations(TAGGED + ABSENT), iterations(TAGGED)
    whole = {
        "round_one": both * middle["round one"],
        "labels": TAGGED * (middle["label"] + middle["look-alikes of 8 images"] / 8),
        "round_two": both * middle["round two"],
    }
    parts = {
        "absent_tagged_images": (both - alone) * (middle["round one"] + middle["round two"]),
        "exclusive": both * sum(middle[name] - middle[f"{name}, not exclusive"] for name in ("round one", "round two")),
        "look_alikes": TAGGED
        * (middle["label"] - middle["label, no look-alikes"] + middle["look-alikes of 8 images"] / 8),
        "second_scale": TAGGED * (middle["label"] - middle["label, one scale"]),
        "priors": TAGGED * (middle["label, with a prior"] - middle["label"]),
        "50_stored_images": (iterations(TAGGED + ABSENT + STORED) - both) * middle["round two"],
    }
    update = sum(whole.values())
    table += ["", "| part | s | of the update |", "|---|---:|---:|"]
    for name, value in {**whole, **parts}.items():
        table.append(f"| {name.replace('_', ' ')} | {value:.0f} | {value / update:.1%} |")
    summary = {f"{name}_s": round(value, 1) for name, value in {**whole, "update": update, **parts}.items()}
    write_record(
        "tags_cost",
        command="python -m benchmarks.tags_cost",
        rows=rows,
        summary=summary,
        table=table,
        note=f"{ROUNDS} interleaved rounds after {WARM_UP} of warm-up, one thread, {'bf16' if bf16 else 'fp32'}; no "
        "reading of files, no optimiser. The first three parts are the whole update; how batches are composed costs "
        "nothing beyond the absent-tagged images themselves.",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
