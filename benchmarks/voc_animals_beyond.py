"""The default method on real photographs, part by part, against the bounds that were set for it.

    python -m benchmarks.voc_animals_beyond --data DIR --weights FILE [--work DIR] [--jobs 2]

Runs the protocol ``voc-animals-beyond`` (finished cells are kept) and adds to its figures the ratios of their means:
``tags_old_over_base``, ``tags_new_over_joint``, ``tags_new_over_true_masks``, ``tags_all_minus_wilson_all`` (against
the row ``wilson`` of ``voc_animals_story``), and the same of 50 stored images.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.record import RESULTS

PROTOCOL = "voc-animals-beyond"
NOTE = (
    "Ratios are of the means over seeds, in per cent; differences are points of IoU. Rates, share of absent-tagged "
    "images, threshold and look-alikes were chosen on benchmarks/voc_animals/tuning.txt (docs/benchmarks.md lists the "
    "trials); every row was scored on the 260 validation images once."
)


def ratios(found: Mapping[str, float | None], *, wilson_all: float) -> dict[str, float | None]:
    """Return the figures that the rows' means add up to; None where a row has not run."""

    def over(row: str, key: str, other: str) -> float | None:
        a, b = found.get(f"overlap_{row}_{key}"), found.get(f"overlap_{other}_{key}")
        return None if a is None or not b else round(100 * a / b, 1)

    tags_all = found.get("overlap_tags_all")
    return {
        "tags_old_over_base": over("tags", "old", "base"),
        "tags_new_over_joint": over("tags", "new", "joint"),
        "tags_new_over_true_masks": over("tags", "new", "masks"),
        "tags_all_minus_wilson_all": None if tags_all is None else round(tags_all - wilson_all, 2),
        "memory50_old_over_base": over("tags_memory", "old", "base"),
        "memory50_new_over_joint": over("tags_memory", "new", "joint"),
    }


def main() -> None:
    from cilseg.bench.protocol import ProtocolRequest, open_protocol, record, run_protocol
    from cilseg.bench.table import summary

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("CILSEG_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(default) / "voc_animals" if default else None)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / PROTOCOL)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cells", nargs="+", default=[])
    parser.add_argument("--finished", action="store_true", help="Run nothing, record what is there.")
    args = parser.parse_args()
    opened = open_protocol(
        ProtocolRequest(PROTOCOL, work=args.work, data=[str(args.data)], weights=args.weights, cells=args.cells)
    )
    if not args.finished:
        run_protocol(opened, jobs=args.jobs, say=lambda text: print(text, flush=True))
    table = opened.table()
    path = record(opened, table, "voc_animals_beyond", note=NOTE)
    written = json.loads(path.read_text())
    story = json.loads((RESULTS / "voc_animals_story.json").read_text())
    written["summary"] |= ratios(summary(table), wilson_all=story["summary"]["wilson_all"])
    written["command"] = "python -m benchmarks.voc_animals_beyond --data voc_animals --weights FILE"
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(written["summary"])


if __name__ == "__main__":
    main()
