"""What the gate says of one update after another: four updates of one class each on generated scenes.

    python -m benchmarks.successive_updates [--work DIR] [--row tags] [--jobs 2]

Runs the row of the protocol ``scenes-4-1-1-1-1`` (finished cells are kept) and compares every model with the one before
it on the judged images, with the default gate policy. Old classes are all that the parent knows, the ones learned in
earlier updates among them. Figures: ``promoted`` (updates that the gate lets through), ``classes_lost`` (classes that
end below half of their IoU at the time when they came in), ``least_kept`` (the smallest such share, in per cent).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import write_record

PROTOCOL = "scenes-4-1-1-1-1"


def verdicts(opened: Any, row: str) -> list[dict[str, Any]]:
    """Return a row per update: IoU of every class before and after, and the verdict of the gate."""
    from safetensors.torch import load_file

    from cilseg.bench.cells import WEIGHTS
    from cilseg.bench.plan import Cell
    from cilseg.evaluate.gate import judge
    from cilseg.evaluate.run import evaluate_source
    from cilseg.models.build import new_model
    from cilseg.models.inference import InferenceGraph

    data = opened.data
    (name, source), *_ = data.judges.items()
    shape = opened.config.model.model_copy(update={"weights": "none"})

    def confusions(step: int, classes: Any) -> Any:
        cell = Cell("overlap", 0, row if step else "base", step)
        model = new_model(shape, data.classes_until(step), seed=0)
        model.load_state_dict(load_file(opened.work / cell.id / WEIGHTS))
        graph = InferenceGraph(model.eval(), model.preprocessing).eval()
        return evaluate_source(graph.predict, source, classes, annotated=data.class_set.foreground).confusions

    rows = []
    for step in range(1, len(opened.config.step_sizes)):
        classes = data.classes_until(step)
        old = data.classes_until(step - 1).foreground
        result = judge(confusions(step - 1, classes), confusions(step, classes), class_set=classes, old=old)
        rows.append(
            {
                "update": step,
                "images": len(source),
                "source": name,
                "verdict": result.verdict,
                "headline": result.headline,
                "classes": [
                    {"class": c.name, "role": c.role, "parent_iou": c.before, "candidate_iou": c.after}
                    for c in result.classes
                ],
            }
        )
        print(f"update {step}: {result.headline}", flush=True)
    return rows


def main() -> None:
    from cilseg.bench.protocol import ProtocolRequest, open_protocol, run_protocol

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs") / PROTOCOL)
    parser.add_argument("--row", default="tags")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    opened = open_protocol(ProtocolRequest(PROTOCOL, work=args.work, cells=[args.row]))
    run_protocol(opened, jobs=args.jobs, say=lambda text: print(text, flush=True))
    rows = verdicts(opened, args.row)
    first: dict[str, float] = {}
    for row in rows:
        for found in row["classes"]:
            if found["role"] == "new" or (row["update"] == 1 and found["role"] == "old"):
                first[found["class"]] = found["candidate_iou" if found["role"] == "new" else "parent_iou"]
    last = {c["class"]: c["candidate_iou"] for c in rows[-1]["classes"]}
    kept = {name: 100 * last[name] / iou for name, iou in first.items()}
    names = list(first)
    table = [
        f"| after | {' | '.join(names)} | gate |",
        "|---" * (len(names) + 2) + "|",
        f"| base | {' | '.join(f'{first[n]:.1f}' if n in _old(rows) else '' for n in names)} | |",
    ]
    for row in rows:
        ious = {c["class"]: c["candidate_iou"] for c in row["classes"]}
        cells = " | ".join(f"{ious[n]:.1f}" if n in ious else "" for n in names)
        table.append(f"| update {row['update']} | {cells} | {row['headline']} |")
    write_record(
        "successive_updates",
        command=f"python -m benchmarks.successive_updates --row {args.row}",
        rows=rows,
        summary={
            "promoted": float(sum(row["verdict"] == "PROMOTE" for row in rows)),
            "updates": float(len(rows)),
            "classes_lost": float(sum(share < 50 for share in kept.values())),
            "least_kept": round(min(kept.values()), 1),
        },
        table=table,
        note=f"IoU in % on {rows[0]['images']} generated scenes that no training saw; row {args.row} of {PROTOCOL}, "
        "one seed. The gate compares each model with the one before it (default policy).",
    )
    print("\n".join(table))


def _old(rows: list[dict[str, Any]]) -> set[str]:
    return {c["class"] for c in rows[0]["classes"] if c["role"] == "old"}


if __name__ == "__main__":
    main()
