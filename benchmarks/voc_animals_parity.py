"""Does the exported model answer like the trained one, on real photographs?

    python -m benchmarks.voc_animals_parity --data DIR [--work runs/voc_animals_story] [--images 30]

Exports the `wilson` model of seed 0 that `benchmarks.voc_animals_story` left in its working folder, and compares masks
and logits on val images at three sizes, alone and in batches of three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import write_record
from benchmarks.voc_animals_story import MODEL, NEW, OLD, load_data


def main() -> None:
    import torch

    from cilseg.bundle import Manifest
    from cilseg.classes import ClassSet
    from cilseg.config import ModelConfig
    from cilseg.models.build import new_model
    from cilseg.models.inference import InferenceGraph
    from cilseg_export.onnx_export import export_onnx
    from cilseg_export.parity import check_parity

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("CILSEG_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(default) / "voc_animals" if default else None)
    parser.add_argument("--work", type=Path, default=Path("runs/voc_animals_story"))
    parser.add_argument("--images", type=int, default=30)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data, or set CILSEG_REAL_DATA")
    classes = ClassSet.base(OLD).extend(NEW, step=1)
    model = new_model(ModelConfig.model_validate(MODEL), classes, seed=0)
    model.load_state_dict(torch.load(args.work / "val" / "seed0" / "wilson" / "weights.pt", weights_only=True))
    manifest = Manifest(
        classes=classes.to_json(),
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        method="wilson",
        seed=0,
        created_at="",
    )
    *_, judge = load_data(args.data, "val")
    rows = np.linspace(0, len(judge) - 1, args.images).round().astype(int).tolist()
    graph = InferenceGraph(model, model.preprocessing, outputs=("mask", "logits")).eval()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        record = export_onnx(graph, path, manifest=manifest, version_digest=manifest.digest)
        images, ids = [judge.image(i) for i in rows], [judge.ids[i] for i in rows]
        report = check_parity(graph, path, images, out_dir=Path(temporary), ids=ids)
    total = report.summary()
    table = ["| what | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in total.items() if k != "runtime")]
    write_record(
        "voc_animals_parity",
        command="python -m benchmarks.voc_animals_parity --data voc_animals",
        rows=[case.to_json() for case in report.cases],
        summary={
            "passed": float(report.passed),
            "differing_outside_ties": float(total["differing"] - total["tied_differing"]),
            "tied_share": round(total["ties"] / total["pixels"], 6),
            "largest_logit_error": total["largest_logit_error"],
        },
        table=table,
        note=f"{args.images} val images at three sizes (own, odd, no multiple of 16), alone and in batches of three; "
        f"opset {record.opset}, {record.size_bytes / 1e6:.1f} MB, exported in {record.seconds:.0f} s.",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
