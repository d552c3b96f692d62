"""The published method and its bounds on real photographs.

    python -m benchmarks.voc_animals_story --data DIR --weights FILE [--seeds 0 1 2] [--jobs 2]

Base cat, dog, horse, person from masks; new cow and sheep (overlap protocol) from masks (joint, ft) or from tags
(wilson rows). Other VOC classes are background. 160 training images that show neither cow nor sheep are withheld
from base training in every row and are the absent-tagged images of ``wilson_negatives``. Hyper-parameters were tuned
on 20 % of the training ids (``--split tuning``); val is scored once per row. Cells are resumed where they stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
LISTS = HERE / "voc_animals"
OLD, NEW = ("cat", "dog", "horse", "person"), ("cow", "sheep")
ROWS = ("base", "joint", "ft", "wilson_published", "wilson", "wilson_negatives", "wilson_oldtags")

MODEL = {
    "backbone": "mobilenetv2_100",
    "output_stride": 16,
    "head_channels": 128,
    "head_dilations": [2, 4, 6],
    "input_mean": [127.5] * 3,
    "input_std": [127.5] * 3,
}
COMMON = {"batch_size": 16, "crop_px": 224, "frozen_stages": 3}
BASE = [  # two cycles of the poly schedule, the second at 0.4 of the rates
    {**COMMON, "epochs": 10, "lr_body": 0.01, "lr_head": 0.03, "lr_classifier": 0.03},
    {**COMMON, "epochs": 4, "lr_body": 0.004, "lr_head": 0.012, "lr_classifier": 0.012},
]
PUBLISHED = {
    **COMMON,
    "epochs": 30,  # the released scripts: 40 for VOC, 30 for COCO-to-VOC
    "schedule": "warmup",
    "lr_body": 0.001,
    "lr_head": 0.01,
    "lr_classifier": 0.01,
    "lr_new_classifier": 0.01,
    "lr_localizer": 0.01,
}
LOW = {**PUBLISHED, "epochs": 14, "freeze_norm": True, "lr_body": 0.0002, "lr_head": 0.001, "lr_classifier": 0.001}
TRIALS = {  # on the tuning ids, one seed: --split tuning --rows wilson --trial NAME; old / new / all
    "low": LOW,  # 57.8 / 10.3 / 48.6 (Base there: 58.0)
    "between": {**LOW, "lr_body": 0.0004, "lr_head": 0.002, "lr_classifier": 0.002},  # 55.7 / 11.1 / 47.5
}
BEST = TRIALS["between"]  # the most for the new classes among those that keep 95 % of Base's old mIoU
STEPS = {
    "joint": {
        "method": "joint",
        "optimiser": {
            **COMMON,
            "epochs": 5,
            "lr_body": 0.01,
            "lr_head": 0.03,
            "lr_classifier": 0.03,
            "lr_new_classifier": 0.03,
        },
    },
    "ft": {"method": "ft", "optimiser": {**PUBLISHED, "epochs": 8, "schedule": "poly"}},
    "wilson_published": {"method": "wilson", "optimiser": PUBLISHED, "wilson": {"use_old_tags": False}},
    "wilson": {"method": "wilson", "optimiser": BEST, "wilson": {"warm_up_epochs": 4, "use_old_tags": False}},
    "wilson_negatives": {  # 479 instead of 319 images an epoch: 9 epochs are the same number of iterations
        "method": "wilson",
        "optimiser": {**BEST, "epochs": 9},
        "wilson": {"warm_up_epochs": 3, "use_old_tags": False},
    },
    "wilson_oldtags": {"method": "wilson", "optimiser": BEST, "wilson": {"warm_up_epochs": 4, "use_old_tags": True}},
}


def load_data(data: Path, split: str):
    """Return (base, step, negatives, judge) sources; ``tuning`` judges on the committed 20 % of the training ids."""
    from cilseg.data.protocol import IncrementalProtocol
    from cilseg.data.source import open_source

    train = open_source(data, split="train", label_names="voc")
    negative_ids = (LISTS / "negatives.txt").read_text().split()
    tuning_ids = (LISTS / "tuning.txt").read_text().split()
    judge = open_source(data, split="val", label_names="voc")
    if split == "tuning":
        judge = train.subset(tuning_ids)
        train = train.subset([i for i in train.ids if i not in set(tuning_ids)])
    protocol = IncrementalProtocol(OLD + NEW, (len(OLD), len(NEW)), "overlap")
    base_rows, step_rows = protocol.split(train.tags())
    withheld = set(negative_ids)
    base = train.subset([train.ids[i] for i in base_rows if train.ids[i] not in withheld])
    step = train.subset([train.ids[i] for i in step_rows])
    return base, step, train.subset([i for i in negative_ids if i in set(train.ids)]), judge


def make_lists(data: Path) -> None:
    """Draw the committed id lists once: 20 % for tuning, 160 absent-tagged images from the rest."""
    import numpy as np

    from cilseg.data.source import open_source

    train = open_source(data, split="train", label_names="voc")
    rng = np.random.Generator(np.random.PCG64(20220601))
    tuning = sorted(rng.permutation(len(train))[: len(train) // 5].tolist())
    candidates = [i for i, tags in enumerate(train.tags()) if tags & set(OLD) and not tags & set(NEW)]
    negatives = sorted(rng.permutation(candidates)[:160].tolist())
    LISTS.mkdir(exist_ok=True)
    (LISTS / "tuning.txt").write_text("".join(train.ids[i] + "\n" for i in tuning))
    (LISTS / "negatives.txt").write_text("".join(train.ids[i] + "\n" for i in negatives))


def run_cell(row: str, seed: int, args: argparse.Namespace) -> None:
    """Train and score one row of one seed; write ``cell.json`` beside its weights."""
    import numpy as np
    import torch

    from cilseg.classes import ClassSet
    from cilseg.config import ModelConfig, OptimiserConfig, RuntimeConfig, UpdateConfig
    from cilseg.data.labels import map_mask
    from cilseg.data.protocol import tag_columns
    from cilseg.evaluate.confusion import confusion_matrix
    from cilseg.evaluate.scoring import Scores
    from cilseg.models.build import new_model
    from cilseg.models.inference import InferenceGraph
    from cilseg.models.segmenter import SegmentationModel
    from cilseg.train.steps import masked_set, run_id_of, tagged_files, train_base, train_increment

    seed_dir = args.work / args.split / f"seed{seed}"
    cell = seed_dir / (f"{row}_{args.trial}" if args.trial else row)
    runtime = RuntimeConfig(threads=args.threads, checkpoint_every_s=120)
    base_set = ClassSet.base(OLD)
    classes = base_set.extend(NEW, step=1)
    base, step, negatives, judge = load_data(args.data, args.split)
    model_config = ModelConfig(**MODEL, weights=str(args.weights))
    seed_run = 1000 * seed + ROWS.index(row)

    def log(tick) -> None:
        if tick.iteration % 20 == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in tick.losses.items())
            print(f"{row} seed {seed} {tick.iteration}/{tick.iterations} {shown}", flush=True)

    parent = new_model(model_config, base_set, seed=seed)
    if row == "base":
        model: SegmentationModel = parent
        for cycle, settings in enumerate(BASE, start=1):
            optimiser = OptimiserConfig(**settings)
            data = masked_set(base, base_set, optimiser, visible=OLD, seed=seed_run + 100 * (cycle - 1))
            model = train_base(
                model,
                data,
                optimiser,
                runtime=runtime,
                seed=seed_run,
                run_dir=cell / f"cycle{cycle}",
                run_id=run_id_of(row=row, seed=seed, settings=settings, cycle=cycle),
                resume=True,
                on_tick=log,
            )
    else:
        parent.load_state_dict(torch.load(seed_dir / "base" / "weights.pt", weights_only=True))
        steps = {**STEPS[row], **({"optimiser": TRIALS[args.trial]} if args.trial else {})}
        config = UpdateConfig.model_validate(steps)
        if row == "joint":
            source, visible = load_union(args.data, base, step), OLD + NEW
        else:
            source, visible = step, NEW
        if config.method == "wilson":
            if row == "wilson_negatives":
                source = load_union(args.data, step, negatives)
            tags = tag_columns(source.tags(), classes.foreground).astype(np.int8)
            data = tagged_files(source.image_paths, tags, config.optimiser, seed=seed_run)
        else:
            data = masked_set(source, classes, config.optimiser, visible=visible, seed=seed_run)
        model = train_increment(
            parent,
            data,
            config,
            n_new=len(NEW),
            runtime=runtime,
            seed=seed_run,
            run_dir=cell,
            run_id=run_id_of(row=row, seed=seed, config=steps),
            resume=True,
            on_tick=log,
        )
    logs = [path.read_text().splitlines()[-1] for path in sorted(cell.rglob("log.jsonl"))]
    trained_s = sum(json.loads(line)["elapsed_s"] for line in logs)
    torch.save(model.state_dict(), cell / "weights.pt")
    graph = InferenceGraph(model, model.preprocessing)
    total = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for i in range(len(judge)):
        truth = map_mask(judge.mask(i), judge.label_names, classes, visible=OLD + NEW)
        total += confusion_matrix(truth, graph.predict(judge.image(i)), n_classes=len(classes))
    scores = Scores(total)
    reported = scores.reported(classes, since_step=1)
    if row == "base":  # Base has no new classes: its "all" is over what it knows, in truth that holds every class
        reported = {**reported, "new": None, "all": float(np.mean(scores.class_iou[: len(base_set)]))}
    payload = {
        "row": row,
        "seed": seed,
        **{k: None if v is None else 100 * float(v) for k, v in reported.items()},
        "iou": dict(zip(classes.names, (100 * scores.class_iou).round(2).tolist(), strict=True)),
        "train_s": round(trained_s, 1),
        "images": data.size,
        "config": BASE if row == "base" else steps,
    }
    (cell / "cell.json").write_text(json.dumps(payload, indent=1))
    print(json.dumps({k: payload[k] for k in ("row", "seed", "old", "new", "all", "iou", "train_s")}), flush=True)


def load_union(data: Path, *parts):
    """Return the training source restricted to the ids of ``parts``, in the order of the list file."""
    from cilseg.data.source import open_source

    wanted = {i for part in parts for i in part.ids}
    train = open_source(data, split="train", label_names="voc")
    return train.subset([i for i in train.ids if i in wanted])


def run_all(args: argparse.Namespace) -> None:
    """Run every missing cell, at most ``--jobs`` side by side, bases first; then summarise."""
    waiting = [
        (row, seed)
        for row in ROWS
        if row in args.rows
        for seed in args.seeds
        if args.trial or not (args.work / args.split / f"seed{seed}" / row / "cell.json").is_file()
    ]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    while waiting or running:
        for key, process in list(running.items()):
            if process.poll() is not None:
                del running[key]
                if process.returncode:
                    raise SystemExit(f"cell {key} failed with exit code {process.returncode}")
        for key in list(waiting):
            row, seed = key
            ready = row == "base" or (args.work / args.split / f"seed{seed}" / "base" / "cell.json").is_file()
            if len(running) < args.jobs and ready:
                waiting.remove(key)
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.voc_animals_story",
                    "--data",
                    str(args.data),
                    "--weights",
                    str(args.weights),
                    "--work",
                    str(args.work),
                    "--split",
                    args.split,
                    "--threads",
                    str(args.threads),
                    *(["--trial", args.trial] if args.trial else []),
                    "--cell",
                    row,
                    str(seed),
                ]
                running[key] = subprocess.Popen(command, env=env)
        time.sleep(1)
    if args.split == "val" and set(args.rows) == set(ROWS):
        summarise(args)


def summarise(args: argparse.Namespace) -> None:
    """Gather the cells into ``results/voc_animals_story.json`` and ``.md``."""
    import statistics

    from benchmarks.record import write_record

    cells = {
        row: [json.loads((args.work / "val" / f"seed{s}" / row / "cell.json").read_text()) for s in args.seeds]
        for row in ROWS
    }
    summary: dict[str, float | None] = {}
    lines = ["| row | supervision of cow, sheep | old | new | all | s |", "|---|---|---|---|---|---|"]
    words = {
        "base": "none (base model)",
        "joint": "masks, all images",
        "ft": "masks",
        "wilson_published": "tags",
        "wilson": "tags",
        "wilson_negatives": "tags + 160 absent-tagged images",
        "wilson_oldtags": "tags of old and new classes",
    }
    for row, runs in cells.items():
        texts = []
        for key in ("old", "new", "all"):
            values = [r[key] for r in runs if r[key] is not None]
            summary[f"{row}_{key}"] = round(statistics.fmean(values), 2) if values else None
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            texts.append(f"{statistics.fmean(values):.1f} ± {spread:.1f}" if values else "-")
        seconds = statistics.fmean(r["train_s"] for r in runs)
        lines.append(f"| {row} | {words[row]} | {' | '.join(texts)} | {seconds:.0f} |")
    rows = [cell for runs in cells.values() for cell in runs]
    command = "python -m benchmarks.voc_animals_story --data voc_animals --weights mobilenetv2_100_imagenet.safetensors"
    write_record(
        "voc_animals_story",
        command=command,
        rows=rows,
        summary=summary,
        table=lines,
        note=f"Seeds {args.seeds}: mean ± standard deviation, IoU in %, 260 val images at native size (short "
        "side 240 px), single scale. old: cat, dog, horse, person; new: cow, sheep; all: with background. "
        "Base's `all` is over background and its four classes. Every picture was chosen because it shows "
        f"an animal. Training seconds with {args.threads} thread(s), {args.jobs} runs side by side on a machine with "
        "other jobs: orders of magnitude. Looks at val beside these rows: Base of seeds 0 and 1 before its second "
        "cycle (52.6, 53.0 old; the cycle gives 56.9 -> 58.0 on the tuning ids), Joint of seed 0 at half the rates and "
        "4 epochs (58.8 / 40.4), and the trial `low` of seed 0 (52.3 / 19.1). Two trials on the tuning ids: TRIALS.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("CILSEG_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(default) / "voc_animals" if default else None)
    parser.add_argument("--weights", type=Path, required=False)
    parser.add_argument("--work", type=Path, default=Path("runs/voc_animals_story"))
    parser.add_argument("--split", choices=("val", "tuning"), default="val")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trial", choices=sorted(TRIALS), help="other settings for a wilson row; --split tuning only")
    parser.add_argument("--cell", nargs=2, metavar=("ROW", "SEED"))
    parser.add_argument("--make-lists", action="store_true")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data, or set CILSEG_REAL_DATA")
    if args.trial and args.split != "tuning":
        parser.error("trials are judged on the tuning ids: add --split tuning")
    if args.make_lists:
        make_lists(args.data)
    elif args.cell:
        run_cell(args.cell[0], int(args.cell[1]), args)
    elif args.weights is None:
        parser.error("give --weights")
    else:
        run_all(args)


if __name__ == "__main__":
    main()
