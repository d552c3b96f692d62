"""What lower precision costs in IoU: float16 and INT8 against float32, on trained models with their annotated images.

    python -m benchmarks.export_accuracy REGISTRY REF [--row REGISTRY REF]... [--calibration TAGS_OR_DIR]

Each model is exported as ``cilseg export --precision`` does it: INT8 is calibrated on images that show every class,
backs off layer by layer until the limits of ``configs/parity/default.yaml`` hold, and is judged on images of the
version's gate set that did not calibrate. Classes that no image of the gate set shows (logits without a class behind
them) are left out of the calibration's demand that every class be present, and of the figures. Nothing is attached.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export_models import classes_shown
from benchmarks.record import write_record


def measure(registry_url: Path, ref: str, *, calibration: Path | None, method: str, out_dir: Path) -> dict[str, Any]:
    """Return the row of one model: what each precision costs, and what stayed float."""
    from cilseg.config import configs_directory
    from cilseg.registry import Registry
    from cilseg.update.calibration import GateImages
    from cilseg.update.export import export_version
    from cilseg.update.precision import CalibrationRequest, LowerPrecision, float_model_of
    from cilseg_export.limits import load_limits

    registry = Registry.open(registry_url)
    version = registry.resolve(ref)
    float_model = float_model_of(registry, version) or export_version(registry, ref).attachment
    limits = load_limits("default", configs=configs_directory())

    def pictures(gate: GateImages):
        rows = np.linspace(0, len(gate) - 1, 3).round().astype(int).tolist()
        samples = list(replace(gate, source=gate.source.subset([gate.source.ids[i] for i in rows])))
        return [s.name for s in samples], [s.image for s in samples]

    gate = GateImages.of(version)
    shown = classes_shown(version)
    row: dict[str, Any] = {"model": ref}
    manifest = version.manifest
    row |= {"backbone": manifest.architecture.backbone, "logits": len(manifest.class_set)}
    row |= {"classes_seen": len(shown) + 1, "gate_images": len(gate)}
    for precision in ("float16", "int8"):
        work = LowerPrecision(registry, version, float_model, limits[precision], pictures)
        if precision == "float16":
            _, report, record = work.float16(out_dir)
            row["float16_kept_nodes"] = len(record["float16"]["kept"])
        else:
            _, report, record = work.int8(out_dir, CalibrationRequest(calibration, method, classes=shown))
            int8 = record["int8"]
            row |= {"kept_in_float": int8["kept_in_float"], "share_in_float": int8["share_in_float"]}
            row |= {"trials": int8["trials"], "speedup": int8["speedup"], "method": method}
            row |= {"calibration_images": len(int8["calibration"]["images"]), "sensitivity": int8["sensitivity"]}
        summary = report.summary()
        row[precision] = {k: summary[k] for k in ("passed", "agreement", "largest_logit_error", "accuracy", "problems")}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", type=Path)
    parser.add_argument("ref")
    parser.add_argument("--row", nargs=2, action="append", default=[], metavar=("REGISTRY", "REF"))
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--note", default="", help="what the models were trained on")
    args = parser.parse_args()
    rows = []
    for registry, ref in [(args.registry, args.ref), *args.row]:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(
                measure(Path(registry), ref, calibration=args.calibration, method=args.method, out_dir=Path(temporary))
            )
        print(f"{ref}: done", file=sys.stderr, flush=True)
    table = [
        "| model | logits | mIoU float32 | float16: mIoU lost | INT8: mIoU lost | INT8: worst class | layers in float |"
        " times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        half, int8 = row["float16"]["accuracy"], row["int8"]["accuracy"]
        table.append(
            f"| {row['backbone']} ({row['model']}) | {row['logits']} | {int8['reference_miou']:.2f} | "
            f"{half['miou_drop']:.3f} | {int8['miou_drop']:.3f} | {int8['worst_class_drop']:.3f} "
            f"({int8['worst_class']}) | {row['share_in_float']:.1%} | {row['speedup']['factor']:.2f} |"
        )
    write_record(
        "export_accuracy",
        command=shlex.join(["python", "-m", "benchmarks.export_accuracy", *_portable(sys.argv[1:])]),
        rows=rows,
        summary={
            "int8_miou_drop": round(max(r["int8"]["accuracy"]["miou_drop"] for r in rows), 4),
            "int8_worst_class_drop": round(max(r["int8"]["accuracy"]["worst_class_drop"] for r in rows), 4),
            "fp16_miou_drop": round(max(r["float16"]["accuracy"]["miou_drop"] for r in rows), 4),
        },
        table=table,
        note=f"{args.note} Points of IoU lost against the trained model in float32 (the largest of the rows in the "
        "summary); INT8 is judged on images of the gate set that did not calibrate. Times: median of a few interleaved "
        "pairs on a machine under load, for orientation.".strip(),
    )
    print("\n".join(table))


def _portable(words: list[str]) -> list[str]:
    """Return the arguments without folders of this machine and without the note, which stands in the result itself."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--note":
            kept.append(Path(word).name if "/" in word else word)
        skip = word == "--note"
    return kept


if __name__ == "__main__":
    main()
