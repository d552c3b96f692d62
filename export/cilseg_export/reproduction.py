"""What lies beside a failed parity report: the file, the images of the worst comparison, a script that asks again."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np

from cilseg.bundle import write_file_atomically
from cilseg_export.comparison import Comparison
from cilseg_export.parity_report import ParityReport

SCRIPT = "reproduce.py"
DATA = "reproduce.npz"

_TEMPLATE = '''"""Asks {artifact} once more for the worst image of {report}: python reproduce.py.

Needs numpy and onnxruntime. Prints how many pixels have another label than the trained network gave (torch, float32),
and ends with exit code 4 where there are more than {allowed} outside ties.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
DATA = np.load(HERE / "{data}")
ALLOWED = {allowed}  # pixels outside ties

session = onnxruntime.InferenceSession(str(HERE / "{artifact}"), providers=["CPUExecutionProvider"])
(mask,) = session.run(["mask"], {{"image": DATA["images"]}})
given, expected, ties = mask[DATA["position"]], DATA["expected"], DATA["ties"]
unequal = given != expected
clear, tied = int((unequal & ~ties).sum()), int((unequal & ties).sum())
print("image {image}, {width} x {height} px, batch of {batch}; checked with {runtime}, now onnxruntime", end=" ")
print(onnxruntime.__version__)
print(f"{{clear}} of {{given.size}} pixels differ outside ties (then: {differing}), {{tied}} at ties (then: {tied})")
sys.exit(4 if clear > ALLOWED else 0)
'''


def write_reproduction(report: ParityReport, worst: Comparison, artifact: Path) -> Path:
    """Write ``reproduce.py``, its data and a copy of the artifact into the folder of the report; return the script.

    Args:
        report: of a check that failed.
        worst: its worst comparison.
        artifact: the file that was checked.
    """
    case, folder = worst.case, report.out_dir
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=worst.images, position=worst.position, expected=worst.expected, ties=worst.ties)
    write_file_atomically(folder / DATA, buffer.getvalue())
    if artifact.resolve() != (folder / artifact.name).resolve():
        shutil.copyfile(artifact, folder / artifact.name)
    text = _TEMPLATE.format(
        artifact=artifact.name,
        report=report.json_path.name,
        data=DATA,
        allowed=int(report.limits.max_differing * case.pixels),
        image=case.image.replace("\\", "/").replace('"', "'"),
        width=case.size_hw[1],
        height=case.size_hw[0],
        batch=case.batch,
        runtime=f"{report.runtime.get('runtime')} {report.runtime.get('version')}",
        differing=case.differing,
        tied=case.tied_differing,
    )
    script = folder / SCRIPT
    write_file_atomically(script, text.encode())
    return script
