"""One comparison of the parity check: what torch and the artifact said about an image, and whether that is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg_export.limits import ParityLimits
from cilseg_export.torch_session import Reference


@dataclass(frozen=True)
class ParityCase:
    """The outcome for one image at one size within one batch."""

    image: str
    size_hw: tuple[int, int]
    batch: int
    pixels: int
    differing: int
    """Pixels with another label outside ties; all pixels when there was no usable mask."""
    ties: int
    """Pixels that the tie rule leaves to rounding, whether they differ or not."""
    tied_differing: int
    logit_error: float | None
    """Largest logit error as share of the logit range; None when the artifact returns no logits."""
    confidence_error: float | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def agreement(self) -> float:
        """Share of equal labels among the pixels that are no ties (1.0 when all are ties)."""
        clear = self.pixels - self.ties
        return 1.0 - self.differing / clear if self.differing else 1.0

    @property
    def badness(self) -> tuple[float, ...]:
        """Sorts cases, the worst last."""
        errors = [math.inf if math.isnan(e) else e for e in (self.logit_error or 0.0, self.confidence_error or 0.0)]
        return (not self.passed, self.differing / self.pixels, self.tied_differing / self.pixels, *errors)

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        for name in ("logit_error", "confidence_error"):
            if row[name] is not None and not math.isfinite(row[name]):
                row[name] = None
        return {**row, "agreement": self.agreement, "passed": self.passed}


@dataclass(frozen=True, eq=False)
class Comparison:
    """A case with the pictures it is about: image ``(H, W, 3)``, masks ``(H, W)``, ties ``(H, W)`` bool.

    ``images`` is the batch ``(N, H, W, 3)`` that the artifact was given, ``position`` the place of the image in it.
    """

    case: ParityCase
    image: npt.NDArray[np.uint8]
    expected: npt.NDArray[np.uint8]
    given: npt.NDArray[np.uint8] | None
    ties: npt.NDArray[np.bool_]
    images: npt.NDArray[np.uint8]
    position: int


def compare(
    images: npt.NDArray[np.uint8],
    reference: Reference,
    *,
    given: Mapping[str, npt.NDArray[Any]],
    name: str,
    limits: ParityLimits,
    position: int = 0,
    failure: str | None = None,
) -> Comparison:
    """Compare what an artifact said about one image with the reference.

    Args:
        images: the batch that the artifact was given, ``(N, H, W, 3)``.
        reference: the answer of torch.
        given: the artifact's outputs for this image, without the batch axis.
        name: of the image, for the report.
        limits: what is allowed.
        position: place of the image in the batch.
        failure: why there is no answer at all.
    """
    image = images[position]
    size_hw = (image.shape[0], image.shape[1])
    pixels = size_hw[0] * size_hw[1]
    problems = [failure] if failure else _malformed(given, reference)
    ties = reference.margin < limits.tie_margin * reference.logit_range
    mask = None if problems else given["mask"]
    unequal = np.ones(size_hw, dtype=bool) if mask is None else mask != reference.mask
    differing = pixels if mask is None else int((unequal & ~ties).sum())
    tied_differing = 0 if mask is None else int((unequal & ties).sum())
    errors: dict[str, float | None] = {"logits": None, "confidence": None}
    if not problems:
        if differing > limits.max_differing * pixels:
            allowance = f", allowed {limits.max_differing:.2%}" if limits.max_differing else ""
            problems.append(f"{differing:,} of {pixels:,} pixels have another label outside ties{allowance}")
        if tied_differing > limits.max_tied * pixels:
            problems.append(
                f"{tied_differing:,} of {pixels:,} pixels are ties with another label, allowed {limits.max_tied:.2%}"
            )
        allowed = {"logits": limits.max_logit_error, "confidence": limits.max_confidence_error}
        for output, limit in allowed.items():
            if output not in given:
                continue
            error = float(np.abs(given[output].astype(np.float64) - reference.output(output)).max())
            errors[output] = error = error / (reference.logit_range or 1.0) if output == "logits" else error
            if not error <= limit:
                unit = " of the logit range" if output == "logits" else ""
                problems.append(f"{output} are off by up to {error:.2e}{unit}, allowed {limit:.2e}")
    case = ParityCase(
        image=name,
        size_hw=size_hw,
        batch=len(images),
        pixels=pixels,
        differing=differing,
        ties=int(ties.sum()),
        tied_differing=tied_differing,
        logit_error=errors["logits"],
        confidence_error=errors["confidence"],
        problems=tuple(problems),
    )
    return Comparison(case, image, reference.mask, mask, ties, images, position)


def _malformed(given: Mapping[str, npt.NDArray[Any]], reference: Reference) -> list[str]:
    """Return what makes a comparison of labels pointless: no mask, wrong shapes or types, NaN in the reference."""
    faults = [] if "mask" in given else [f"there is no output 'mask' with one entry per image (found {sorted(given)})"]
    if not np.isfinite(reference.logit_range):
        faults.append("the network itself gives logits that are not finite numbers")
    for name, array in given.items():
        wanted = reference.output(name)
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            faults.append(f"{name} is {array.shape} {array.dtype}, expected {wanted.shape} {wanted.dtype}")
    return faults
