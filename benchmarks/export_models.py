"""Export trained versions in every precision, so that ``export_latency`` can measure them.

    python -m benchmarks.export_models REGISTRY REF [REF ...]

As ``cilseg export`` does it, with one difference: INT8 is calibrated on images of every class that the gate set shows,
not of every class of the model, because a model of 21 logits may have been trained on fewer classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cilseg.registry import Version
from cilseg.update.calibration import GateImages

PRECISIONS = ("float32", "float16", "int8")


def classes_shown(version: Version) -> tuple[str, ...]:
    """Return the classes of a version that some image of its gate set shows."""
    gate = GateImages.of(version)
    if gate is None:
        raise SystemExit(f"{version.ref} records no gate set.")
    columns = gate.candidates().states.T
    return tuple(n for n, column in zip(version.manifest.class_set.foreground, columns, strict=True) if 1 in column)


def main() -> None:
    from cilseg.registry import Registry
    from cilseg.update.export import export_version
    from cilseg.update.precision import CalibrationRequest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", type=Path)
    parser.add_argument("refs", metavar="REF", nargs="+")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one; may be repeated")
    args = parser.parse_args()
    registry = Registry.open(args.registry)
    for ref in args.refs:
        calibration = CalibrationRequest(classes=classes_shown(registry.resolve(ref)))
        for precision in args.precision or PRECISIONS:
            result = export_version(registry, ref, precision=precision, calibration=calibration)
            print("\n".join([str(result.attachment.path), *result.in_words()]), flush=True)


if __name__ == "__main__":
    main()
