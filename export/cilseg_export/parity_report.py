"""The report of a parity check: JSON, the picture of the worst image, and the refusal in words."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import write_file_atomically
from cilseg.classes import VOID_ID
from cilseg.errors import ParityError
from cilseg_export.accuracy import Accuracy
from cilseg_export.comparison import Comparison, ParityCase
from cilseg_export.limits import ParityLimits

SCHEMA = "cilseg.parity/1"
REPORT = "parity{}.json"
WORST = "parity_worst{}.png"
_GAP_PX = 4
_VOID_COLOR = (224, 224, 192)
_WRONG_COLOR = (230, 30, 30)
_TIE_COLOR = (250, 200, 0)


@dataclass(frozen=True)
class ParityReport:
    """Every comparison of one artifact with its network."""

    artifact: str
    artifact_sha256: str
    version: str
    runtime: dict[str, str]
    limits: ParityLimits
    cases: tuple[ParityCase, ...]
    out_dir: Path
    precision: str = "float32"
    accuracy: Accuracy | None = None
    """What the artifact costs in IoU; None where nothing was annotated."""
    label: str = ""
    """Part of the names of the files, such as ``fp16``."""

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases) and not self.problems

    @property
    def agreement(self) -> float:
        """Share of equal labels over all comparisons, ties left out."""
        clear = sum(c.pixels - c.ties for c in self.cases)
        return 1.0 - sum(c.differing for c in self.cases) / clear if clear else 1.0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the artifact as a whole, beside single comparisons."""
        found = list(self.accuracy.problems(self.limits)) if self.accuracy else []
        if self.limits.asks_for_masks and self.accuracy is None:
            found.append("IoU was not compared: no annotated images")
        if self.agreement < self.limits.min_agreement:
            found.append(f"{self.agreement:.3%} of the labels agree, asked for {self.limits.min_agreement:.3%}")
        return tuple(found)

    @property
    def worst(self) -> ParityCase:
        return max(self.cases, key=lambda case: case.badness)

    @property
    def json_path(self) -> Path:
        return self.out_dir / REPORT.format(self.label and f".{self.label}")

    @property
    def worst_path(self) -> Path:
        """Picture of the worst case: image, torch, artifact, difference (red; yellow where it is a tie)."""
        return self.out_dir / WORST.format(self.label and f".{self.label}")

    def summary(self) -> dict[str, Any]:
        """Return the verdict and the totals: what the artifact's record carries."""
        logit_errors = [c.logit_error for c in self.cases if c.logit_error is not None]
        return {
            "passed": self.passed,
            "runtime": self.runtime,
            "comparisons": len(self.cases),
            "failed": sum(not c.passed for c in self.cases),
            "images": len({c.image for c in self.cases}),
            "sizes": len({c.size_hw for c in self.cases}),
            "pixels": sum(c.pixels for c in self.cases),
            "differing": sum(c.differing for c in self.cases),
            "ties": sum(c.ties for c in self.cases),
            "tied_differing": sum(c.tied_differing for c in self.cases),
            "agreement": self.agreement,
            "lowest_agreement": min(c.agreement for c in self.cases),
            "largest_logit_error": max(logit_errors) if logit_errors and np.isfinite(logit_errors).all() else None,
            "precision": self.precision,
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
            "problems": list(self.problems),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the report as written to ``parity.json``; holds no paths."""
        return {
            "schema": SCHEMA,
            "artifact": self.artifact,
            "artifact_sha256": self.artifact_sha256,
            "version": self.version,
            "passed": self.passed,
            "limits": self.limits.model_dump(),
            "summary": self.summary(),
            "cases": [c.to_json() for c in self.cases],
        }

    def write(self, worst: Comparison, palette: npt.NDArray[np.uint8]) -> None:
        """Write ``parity.json`` and the picture of ``worst`` into ``out_dir``; ``palette`` is ``(n, 3)`` uint8."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        draw_comparison(worst, palette).save(buffer, format="PNG")
        write_file_atomically(self.worst_path, buffer.getvalue())
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_file_atomically(self.json_path, text.encode())

    def raise_if_failed(self) -> None:
        """Raise if any comparison failed.

        Raises:
            ParityError: names the worst image, its size, what differs, where the picture is and what to do.
        """
        if self.passed:
            return
        failed = [case for case in self.cases if not case.passed]
        worst = self.worst
        height, width = worst.size_hw
        runtime = f"{self.runtime.get('runtime', 'unknown runtime')} {self.runtime.get('version', '')}".strip()
        lines = [
            f"{self.artifact} does not give the network's answers within the limits of {self.precision} ({runtime}): "
            f"{len(failed)} of {len(self.cases)} comparisons failed.",
            *(f"Over all images: {problem}." for problem in self.problems),
            f"Worst: image {worst.image} at {width} x {height} px in a batch of {worst.batch}: "
            f"{'; '.join(worst.problems) or 'within the limits'}.",
            f"See {self.worst_path} (image, torch, file, difference) and {self.json_path}; "
            f"{self.out_dir / 'reproduce.py'} asks the file for that image again.",
            f"Do not deploy this file. {_ADVICE.get(self.precision, _ADVICE['float32'])}",
        ]
        raise ParityError("\n".join(lines))


_ADVICE = {
    "float32": "Export the version again; if that fails too, try another torch or runtime version and report the "
    "problem with these files.",
    "float16": "Serve the float32 file, or give limits of your own with --limits FILE.",
    "int8": "Calibrate with more images of every class (--calibration), try another --calibration-method, serve the "
    "float16 file, or give limits of your own with --limits FILE.",
}


def draw_comparison(comparison: Comparison, palette: npt.NDArray[np.uint8]) -> Image.Image:
    """Draw image, torch's mask, the artifact's mask and their difference side by side.

    Difference: the image darkened, red where labels differ, yellow where they differ and the pixel is a tie.
    """
    colors = np.tile(np.array([_VOID_COLOR], dtype=np.uint8), (256, 1))
    colors[: len(palette)] = palette
    given = np.full_like(comparison.expected, VOID_ID) if comparison.given is None else comparison.given
    unequal = given != comparison.expected
    difference = comparison.image // 3
    difference[unequal] = _WRONG_COLOR
    difference[unequal & comparison.ties] = _TIE_COLOR
    gap = np.full((comparison.image.shape[0], _GAP_PX, 3), 255, dtype=np.uint8)
    panels = [comparison.image, gap, colors[comparison.expected], gap, colors[given], gap, difference]
    return Image.fromarray(np.concatenate(panels, axis=1))
