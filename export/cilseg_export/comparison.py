"""One comparison of the parity check: what torch and the artifact said about an image, and whether that is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError
from cilseg_export.torch_session import Reference


@dataclass(frozen=True)
class ParityLimits:
    """How far an artifact may be from the network; the defaults are those of float32.

    Raises:
        InputError: a limit that is negative or not a number.
    """

    tie_margin: float = 1e-3
    """A pixel is a tie when its two best logits differ by less than this share of the image's logit range."""
    max_tied: float = 1e-3
    """Share of an image's pixels that may be ties with another label. Outside ties no label may differ."""
    max_logit_error: float = 1e-3
    """Largest error of a logit, as share of the image's logit range (checked when the artifact returns logits)."""
    max_confidence_error: float = 1e-3
    """Largest error of a confidence, absolute (checked when the artifact returns confidences)."""

    def __post_init__(self) -> None:
        bad = {name: value for name, value in asdict(self).items() if not value >= 0}
        if bad:
            raise InputError(f"Parity limits are numbers from 0 on, got {bad}.")


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
    """A case with the pictures it is about: image ``(H, W, 3)``, masks ``(H, W)``, ties ``(H, W)`` bool."""

    case: ParityCase
    image: npt.NDArray[np.uint8]
    expected: npt.NDArray[np.uint8]
    given: npt.NDArray[np.uint8] | None
    ties: npt.NDArray[np.bool_]


def compare(
    image: npt.NDArray[np.uint8],
    reference: Reference,
    *,
    given: Mapping[str, npt.NDArray[Any]],
    name: str,
    batch: int,
    limits: ParityLimits,
    failure: str | None = None,
) -> Comparison:
    """Compare what an artifact said about one image with the reference.

    Args:
        image: what both were given, ``(H, W, 3)``.
        reference: the answer of torch.
        given: the artifact's outputs for this image, without the batch axis.
        name: of the image, for the report.
        batch: how many images were in the batch.
        limits: what is allowed.
        failure: why there is no answer at all.
    """
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
        if differing:
            problems.append(f"{differing:,} of {pixels:,} pixels have another label outside ties")
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
        batch=batch,
        pixels=pixels,
        differing=differing,
        ties=int(ties.sum()),
        tied_differing=tied_differing,
        logit_error=errors["logits"],
        confidence_error=errors["confidence"],
        problems=tuple(problems),
    )
    return Comparison(case, image, reference.mask, mask, ties)


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
