"""Has what the model sees changed? Two sets of images compared: class mix, confidence, looks of the pictures.

The class mix is compared by the population stability index (PSI) of the mean shares, everything else by the two-sample
Kolmogorov-Smirnov distance. A signal is raised when it is large and larger than two samples of the reference differ by
chance: PSI has no distribution of its own here, since pixels of one image are no independent draws, so its chance level
comes from resampling whole images of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError
from cilseg_serve.segmentation import Segmentation

Floats = npt.NDArray[np.float64]
FEATURES = ("brightness", "contrast", "saturation", "sharpness")
MIN_IMAGES = 30
"""Fewer images on either side decide nothing."""
PSI_ALARM = 0.1
KS_ALARM = 0.1
ALPHA = 0.01
"""Chance of a false alarm in one comparison, all signals together (Bonferroni)."""
_SHARE_FLOOR = 1e-4
_DRAWS = 400
_SIDE_PX = 80


@dataclass(frozen=True)
class Observations:
    """What was seen of N images.

    Attributes:
        class_names: name of each column of ``shares``.
        shares: (N, C) share of the pixels per class.
        confidence: (N,) mean confidence; NaN where it is not known.
        features: (N, 4) values of :data:`FEATURES`; NaN where they are not known.
    """

    class_names: tuple[str, ...]
    shares: Floats
    confidence: Floats
    features: Floats

    def __len__(self) -> int:
        return len(self.shares)

    def to_json(self) -> dict[str, Any]:
        def rows(values: Floats) -> list[Any]:
            rounded = np.round(values, 6).tolist()
            return [None if isinstance(v, float) and math.isnan(v) else v for v in rounded]

        return {
            "classes": list(self.class_names),
            "shares": rows(self.shares),
            "confidence": rows(self.confidence),
            "features": {name: rows(self.features[:, column]) for column, name in enumerate(FEATURES)},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Observations:
        """Read :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: another form.
        """
        shares = np.array(content["shares"], dtype=np.float64)
        names = tuple(content["classes"])
        features = np.array([content["features"][name] for name in FEATURES], dtype=np.float64).T
        confidence = np.array(content["confidence"], dtype=np.float64)
        if shares.ndim != 2 or shares.shape[1] != len(names) or not len(shares) == len(features) == len(confidence):
            raise ValueError(f"shapes {shares.shape}, {features.shape}, {confidence.shape}, {len(names)} classes")
        return cls(names, shares, confidence, features)


@dataclass(frozen=True)
class Signal:
    """One thing that was compared.

    Attributes:
        name: ``class_mix``, ``confidence`` or one of :data:`FEATURES`.
        value: PSI of the class mix, else the Kolmogorov-Smirnov distance.
        chance: what the value is expected to stay under by chance, at the level of the alarm.
        before, now: mean of the reference and of the images compared (class mix: of the class that moved most).
        drifted: whether it is an alarm.
        detail: the class that moved most.
    """

    name: str
    value: float
    chance: float
    before: float
    now: float
    drifted: bool
    detail: str | None = None


@dataclass(frozen=True)
class DriftReport:
    """The comparison: ``drift``, ``stable``, or ``too_few`` images to tell."""

    status: Literal["drift", "stable", "too_few"]
    images: int
    reference_images: int
    signals: tuple[Signal, ...]

    def sentence(self) -> str:
        """Say it in one sentence."""
        if self.status == "too_few":
            return (
                f"{self.images} images against {self.reference_images} of the reference; {MIN_IMAGES} on either side "
                "are needed to tell."
            )
        moved = [s.name if s.detail is None else f"{s.name} ({s.detail})" for s in self.signals if s.drifted]
        return f"Drift in {', '.join(moved)}." if moved else "No drift beyond chance."


def observe(image: npt.NDArray[np.uint8], result: Segmentation) -> Observations:
    """Return what is seen of one image ``(H, W, 3)`` and its answer."""
    step = max(1, min(result.mask.shape) // _SIDE_PX)
    mask = result.mask[::step, ::step]
    classes = len(result.class_names)
    shares = np.bincount(mask.ravel(), minlength=256)[:classes] / mask.size
    confidence = math.nan if result.confidence is None else float(result.confidence.mean())
    return Observations(
        result.class_names, shares[None], np.array([confidence]), np.array([image_features(image)], dtype=np.float64)
    )


def image_features(image: npt.NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Return brightness, contrast, saturation (0 to 1) and sharpness of an image ``(H, W, 3)``.

    The first three are the mean and the standard deviation of the grey values and the mean of the HSV saturation, over
    a grid of pixels; sharpness is the mean absolute Laplacian of the grey values in the middle of the image.
    """
    step = max(1, min(image.shape[:2]) // _SIDE_PX)
    grid = image[::step, ::step].astype(np.float32) / 255
    grey = grid @ np.array([0.299, 0.587, 0.114], np.float32)
    top, bottom = grid.max(axis=2), grid.min(axis=2)
    saturation = (top - bottom) / np.maximum(top, 1e-6)
    height, width = image.shape[:2]
    y, x = max(0, height // 2 - _SIDE_PX // 2), max(0, width // 2 - _SIDE_PX // 2)
    middle = image[y : y + _SIDE_PX, x : x + _SIDE_PX].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(middle.shape) < 3:
        return float(grey.mean()), float(grey.std()), float(saturation.mean()), 0.0
    around = middle[:-2, 1:-1] + middle[2:, 1:-1] + middle[1:-1, :-2] + middle[1:-1, 2:]
    sharpness = np.abs(around - 4 * middle[1:-1, 1:-1]).mean() / 255
    return float(grey.mean()), float(grey.std()), float(saturation.mean()), float(sharpness)


def gather(parts: Iterable[Observations]) -> Observations:
    """Put observations of one class set together.

    Raises:
        InputError: there are none, or their classes differ.
    """
    found = list(parts)
    if not found or len({p.class_names for p in found}) > 1:
        raise InputError("Observations of one model are gathered; there are none, or their classes differ.")
    return Observations(
        found[0].class_names,
        np.concatenate([p.shares for p in found]),
        np.concatenate([p.confidence for p in found]),
        np.concatenate([p.features for p in found]),
    )


def compare(reference: Observations, now: Observations, *, seed: int = 0) -> DriftReport:
    """Compare ``now`` with ``reference``; signals that one side did not record are left out.

    Raises:
        InputError: other classes.
    """
    if reference.class_names != now.class_names:
        raise InputError(
            f"The reference has the classes {', '.join(reference.class_names)}, the images "
            f"{', '.join(now.class_names)}. Make the reference again: cilseg drift REF --again"
        )
    if min(len(reference), len(now)) < MIN_IMAGES:
        return DriftReport("too_few", len(now), len(reference), ())
    pairs: list[tuple[str, Floats, Floats]] = [("confidence", reference.confidence, now.confidence)]
    pairs += [(name, reference.features[:, i], now.features[:, i]) for i, name in enumerate(FEATURES)]
    known = [(n, b[~np.isnan(b)], a[~np.isnan(a)]) for n, b, a in pairs]
    known = [(n, b, a) for n, b, a in known if min(len(b), len(a)) >= MIN_IMAGES]
    alpha = ALPHA / (1 + len(known))
    signals = [_class_mix(reference, now, alpha=alpha, seed=seed)]
    signals += [_distance(name, before, after, alpha=alpha) for name, before, after in known]
    status: Literal["drift", "stable"] = "drift" if any(s.drifted for s in signals) else "stable"
    return DriftReport(status, len(now), len(reference), tuple(signals))


def psi(before: Sequence[float] | Floats, now: Sequence[float] | Floats) -> float:
    """Return the population stability index of two distributions; shares under 0.0001 count as that."""
    p = np.maximum(np.asarray(before, dtype=np.float64), _SHARE_FLOOR)
    q = np.maximum(np.asarray(now, dtype=np.float64), _SHARE_FLOOR)
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def ks_distance(before: Floats, now: Floats) -> float:
    """Return the largest gap between the two empirical distribution functions."""
    both = np.sort(np.concatenate([before, now]))
    low = np.searchsorted(np.sort(before), both, side="right") / len(before)
    high = np.searchsorted(np.sort(now), both, side="right") / len(now)
    return float(np.abs(low - high).max())


def ks_chance(n: int, m: int, alpha: float) -> float:
    """Return the distance that two samples of one distribution exceed with probability ``alpha`` (asymptotic)."""
    return math.sqrt(-math.log(alpha / 2) / 2) * math.sqrt((n + m) / (n * m))


def _class_mix(reference: Observations, now: Observations, *, alpha: float, seed: int) -> Signal:
    before, after = reference.shares.mean(axis=0), now.shares.mean(axis=0)
    value = psi(before, after)
    rng = np.random.default_rng(seed)
    n, m = len(reference), len(now)

    def draw(size: int) -> Floats:
        mean: Floats = reference.shares[rng.integers(0, n, size)].mean(axis=0)
        return mean

    by_chance = [psi(draw(n), draw(m)) for _ in range(_DRAWS)]
    chance = float(np.quantile(by_chance, 1 - alpha))
    p, q = np.maximum(before, _SHARE_FLOOR), np.maximum(after, _SHARE_FLOOR)
    most = int(np.argmax((q - p) * np.log(q / p)))
    return Signal(
        "class_mix",
        value,
        chance,
        float(before[most]),
        float(after[most]),
        value > max(PSI_ALARM, chance),
        reference.class_names[most],
    )


def _distance(name: str, before: Floats, now: Floats, *, alpha: float) -> Signal:
    value, chance = ks_distance(before, now), ks_chance(len(before), len(now), alpha)
    return Signal(name, value, chance, float(before.mean()), float(now.mean()), value > max(KS_ALARM, chance))
