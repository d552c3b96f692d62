"""What the sub-grid form of dilated depthwise convolutions buys: python -m benchmarks.training_iteration

One training iteration (forward, loss, backward) of MobileNetV2 DeepLabV3 at output stride 16, stem and three stages
frozen, batch 16, 224 px, one thread; torch's own convolution is the baseline, interleaved in the same process.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.record import write_record
from cilseg.bundle import Architecture, Preprocessing
from cilseg.losses.pixel import bce_with_ignore
from cilseg.models.dilated import SubgridConv2d
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.engine import pick_precision

PAIRS, WARM_UP = 20, 3


def mobilenetv2(classes: int) -> SegmentationModel:
    """Return the network of the protocols on photographs, with random weights; ``classes`` has the background."""
    return SegmentationModel(
        Architecture(
            backbone="mobilenetv2_100",
            output_stride=16,
            head_channels=128,
            head_dilations=(2, 4, 6),
            classes_per_step=(classes,),
        ),
        Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3),
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = pick_precision("cpu") == "bf16-mixed"
    model = mobilenetv2(5).to(memory_format=torch.channels_last)
    model.backbone.freeze(3)
    model.train()
    swapped = [m for m in model.modules() if isinstance(m, SubgridConv2d)]
    image = torch.randint(0, 256, (16, 3, 224, 224), dtype=torch.uint8)
    mask = torch.randint(0, 5, (16, 224, 224))

    def iteration(kind: type[torch.nn.Conv2d]) -> float:
        for conv in swapped:
            conv.__class__ = kind
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model.upsample(model(image).float(), 224, 224)
            loss = bce_with_ignore(logits, mask).mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    seconds: dict[str, list[float]] = {"torch": [], "sub-grid": []}
    for pair in range(WARM_UP + PAIRS):
        for name, kind in (("torch", torch.nn.Conv2d), ("sub-grid", SubgridConv2d)):
            value = iteration(kind)
            if pair >= WARM_UP:
                seconds[name].append(value)
    rows, table = [], ["| convolution | p10 s | median s | p90 s | over torch |", "|---|---|---|---|---|"]
    base = statistics.median(seconds["torch"])
    for name, values in seconds.items():
        low, *_, high = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        rows.append({"convolution": name, "p10_s": low, "median_s": median, "p90_s": high, "over_torch": median / base})
        table.append(f"| {name} | {low:.3f} | {median:.3f} | {high:.3f} | {median / base:.2f} |")
    write_record(
        "training_iteration",
        command="python -m benchmarks.training_iteration",
        rows=rows,
        summary={"subgrid_over_torch": round(rows[1]["over_torch"], 3)},
        table=table,
        note=f"{PAIRS} interleaved pairs after {WARM_UP} warm-up pairs, one thread, {'bf16' if bf16 else 'fp32'}; "
        f"{len(swapped)} convolutions are concerned.",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
