"""The gate: did the old classes get worse? A verdict with a stated error rate from a paired bootstrap over images.

PROMOTE needs every old class to pass, which is an intersection-union test (Berger, "Multiparameter Hypothesis Testing
and Acceptance Sampling", Technometrics 1982): with each class tested at ``alpha``, the chance of promoting a candidate
that has dropped by the tolerance or more on any class is at most ``alpha``, however many classes there are. No
correction is needed for that; ``GatePolicy.correction`` adds one for those who want the lower bounds to hold jointly.
REJECT needs only one class, so its bounds are always Bonferroni-corrected over the old classes (the first step of
Holm's procedure, and the only one that the verdict turns on). The mean over the old classes is reported and not tested:
a mean that lost the tolerance means a class that did.

The level is nominal; benchmarks/gate_calibration.py measures it (docs/gate.md, "Limits").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cilseg.classes import BACKGROUND, ClassSet
from cilseg.errors import FaultCollector, did_you_mean
from cilseg.evaluate import gate_words as words
from cilseg.evaluate.average_precision import AveragePrecision
from cilseg.evaluate.bootstrap import PairedBootstrap, paired_bootstrap
from cilseg.evaluate.flows import ConfusionGrowth, PixelFate, Usurpation, confusion_growth, pixel_fates, usurpations
from cilseg.evaluate.policy import ANY_CLASS
from cilseg.evaluate.policy import GatePolicy as GatePolicy
from cilseg.evaluate.power import ClassPower, gate_power
from cilseg.evaluate.regions import RegionFlips
from cilseg.evaluate.student import student_t_quantile

Counts = npt.NDArray[np.int64]
Verdict = Literal["PROMOTE", "REJECT", "HOLD"]
Role = Literal["old", "new", "background"]
Status = Literal["kept", "dropped", "undecided", "above floor", "below floor", "reported"]

SCHEMA = "cilseg.gate/1"

_HOPELESS_FACTOR = 20


@dataclass(frozen=True)
class ClassResult:
    """One class before and after. Values are points of IoU; None where the truth holds no pixel of the class.

    ``lower`` and ``upper`` are one-sided bounds of ``delta`` (candidate - parent); ``upper`` is corrected over the old
    classes. ``images`` counts annotated images that show the class. ``further_images`` estimates how many more of them
    would settle an undecided class; None when no number would. ``standard_error`` is that of ``delta``.
    """

    name: str
    role: Role
    status: Status
    before: float | None
    after: float | None
    delta: float | None
    lower: float | None
    upper: float | None
    images: int
    further_images: int | None = None
    floor: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class GateExtras:
    """What is known beside the confusions.

    Attributes:
        regions: objects of old classes found before and lost now, and the opposite.
        calibration_error: expected calibration error in points, before and after.
        tag_precision: average precision of new classes from image tags.
        attempt: which candidate of its lineage this is on this gate set, counted from 1; None: not counted.
    """

    regions: RegionFlips | None = None
    calibration_error: tuple[float, float] | None = None
    tag_precision: tuple[AveragePrecision, ...] = ()
    attempt: int | None = None


@dataclass(frozen=True)
class GateResult:
    """A verdict and what it rests on; :meth:`to_json` is what ``gate.json`` holds.

    ``mean_old`` is the mean over the old classes. ``flips`` counts pixels over the whole set, when they are known.
    ``power`` is what the gate set could tell, from the standard errors of this comparison. ``to_tag`` says what to tag
    next, in sentences.
    """

    verdict: Verdict
    headline: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    error_statement: str
    policy: GatePolicy
    n_images: int
    classes: tuple[ClassResult, ...] = ()
    mean_old: ClassResult | None = None
    fates: tuple[PixelFate, ...] = ()
    grown: tuple[ConfusionGrowth, ...] = ()
    usurped: tuple[Usurpation, ...] = ()
    flips: Mapping[str, int] | None = None
    extras: GateExtras = GateExtras()
    power: tuple[ClassPower, ...] = ()
    to_tag: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 for PROMOTE, else 3 (gate rejected or held)."""
        return 0 if self.verdict == "PROMOTE" else 3

    def of_role(self, role: Role) -> tuple[ClassResult, ...]:
        return tuple(c for c in self.classes if c.role == role)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, without NaN."""
        payload = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("classes", "fates", "grown", "usurped", "power"):
            payload[name] = [dataclasses.asdict(item) for item in payload[name]]
        for name in ("reasons", "advice", "notes", "to_tag"):
            payload[name] = list(payload[name])
        payload["mean_old"] = dataclasses.asdict(self.mean_old) if self.mean_old else None
        payload["flips"] = dict(self.flips) if self.flips is not None else None
        payload.update(dataclasses.asdict(payload.pop("extras")))
        payload["policy"] = self.policy.model_dump(mode="json")
        return {"schema": SCHEMA, **payload, "exit_code": self.exit_code}


def judge(
    parent: Counts | None,
    candidate: Counts | None,
    *,
    class_set: ClassSet,
    old: Collection[str],
    policy: GatePolicy | None = None,
    flips: Mapping[str, int] | None = None,
    extras: GateExtras | None = None,
) -> GateResult:
    """Compare candidate and parent, scored on the same images.

    Args:
        parent: (N, C, C) per-image confusion matrices ``[truth, prediction]`` of the parent in the candidate's class
            set (it simply never predicts the new classes); None when there is no gate set.
        candidate: the same for the candidate.
        class_set: of the candidate, C entries.
        old: foreground classes that the parent has; the others are new. Background is reported, never judged.
        policy: what is asked; defaults of :class:`GatePolicy`.
        flips: totals to put into the result, for example ``{"negative": 10, "positive": 20, "pixels": 1000}``.
        extras: what else is known; its average precisions count where the policy sets floors for them.

    Raises:
        InputError: stacks that do not fit together, unknown names in ``old`` or in the floors, no old class at all.
    """
    policy, extras = policy or GatePolicy(), extras or GateExtras()
    _check_names(class_set, old, policy)
    if parent is None or candidate is None or len(candidate) == 0:
        return GateResult(
            verdict="HOLD",
            headline="HOLD: nothing was compared, because there is no gate set.",
            reasons=("No annotated images were given, so nobody knows whether the old classes got worse.",),
            advice=(words.gate_set_advice(policy),),
            notes=(),
            error_statement="No error rate can be stated without a gate set.",
            policy=policy,
            n_images=0,
            extras=extras,
        )
    if candidate.shape[1:] != (len(class_set), len(class_set)):
        faults = FaultCollector("Gate")
        faults.add(f"confusion matrices of {candidate.shape[-1]} classes for a class set of {len(class_set)}")
        faults.raise_if_any("Score both models in the candidate's class set.")

    old_ids = [i for i, name in enumerate(class_set.names) if name in old and name != BACKGROUND]
    drawn = paired_bootstrap(parent, candidate, mean_of=old_ids, resamples=policy.resamples, seed=policy.seed)
    family = len(old_ids)
    alpha_lower = policy.alpha / (family if policy.correction == "bonferroni" else 1)
    alpha_upper = policy.alpha / family
    # A promotion also rests on every floor, so the floors join the intersection-union test at the same level.
    lower, upper = drawn.lower(alpha_lower), drawn.upper(alpha_upper)
    classes = tuple(
        _class_result(
            name,
            _role(index, old_ids),
            index=index,
            drawn=drawn,
            bounds=(float(lower[index]), float(upper[index])),
            alphas=(alpha_lower, alpha_upper),
            policy=policy,
            tags=next((t for t in extras.tag_precision if t.name == name), None),
        )
        for index, name in enumerate(class_set.names)
    )
    mean = _mean_result(drawn, old_ids, bounds=(float(lower[-1]), float(drawn.upper(alpha_lower)[-1])))
    verdict = _verdict(classes)
    grown = confusion_growth(parent, candidate, names=class_set.names, old_ids=old_ids)
    told = words.Told(
        verdict=verdict, classes=classes, policy=policy, n_images=len(candidate), extras=extras, grown=grown
    )
    return GateResult(
        verdict=verdict,
        headline=told.headline(),
        reasons=told.reasons(),
        advice=told.advice(),
        notes=told.notes(),
        error_statement=told.error_statement(),
        policy=policy,
        n_images=len(candidate),
        classes=classes,
        mean_old=mean,
        fates=pixel_fates(parent, candidate, names=class_set.names, old_ids=old_ids),
        grown=grown,
        usurped=usurpations(candidate, names=class_set.names, old_ids=old_ids),
        flips=dict(flips) if flips is not None else None,
        extras=extras,
        power=gate_power(
            parent,
            names=class_set.names,
            old=[class_set.names[i] for i in old_ids],
            policy=policy,
            earlier={c.name: c.standard_error for c in classes if c.standard_error is not None},
        ),
        to_tag=told.to_tag(),
    )


def _verdict(classes: Collection[ClassResult]) -> Verdict:
    if any(c.status == "dropped" for c in classes):
        return "REJECT"
    open_cases = ("undecided", "below floor")
    return "HOLD" if any(c.status in open_cases for c in classes) else "PROMOTE"


def _role(index: int, old_ids: Collection[int]) -> Role:
    if index == 0:
        return "background"
    return "old" if index in old_ids else "new"


def _class_result(
    name: str,
    role: Role,
    *,
    index: int,
    drawn: PairedBootstrap,
    bounds: tuple[float, float],
    alphas: tuple[float, float],
    policy: GatePolicy,
    tags: AveragePrecision | None,
) -> ClassResult:
    delta, tolerance = 100 * float(drawn.delta[index]), policy.tolerance_points
    lower, upper = 100 * bounds[0], 100 * bounds[1]
    images = int(drawn.images_with_class[index])
    enough = images >= policy.min_images_per_class
    floor = policy.floor_of(name) if role == "new" else None
    by_tags = policy.ap_floor_of(name) if role == "new" and images == 0 else None
    status: Status = "reported"
    further: int | None = None
    if role == "old":
        if enough and lower > -tolerance:
            status = "kept"
        elif enough and upper < 0 and delta < -tolerance:
            status = "dropped"
        else:
            status = "undecided"
            further = _further_images(drawn, index, bounds=bounds, alphas=alphas, policy=policy)
    elif by_tags is not None:  # nobody drew masks of it
        floor = None
        status = "above floor" if tags is not None and tags.clears(by_tags, policy) else "below floor"
    elif floor is not None:
        status = "above floor" if enough and lower >= floor else "below floor"
    return ClassResult(
        name=name,
        role=role,
        status=status,
        before=_points(drawn.parent_iou[index]),
        after=_points(drawn.candidate_iou[index]),
        delta=_points(drawn.delta[index]),
        lower=_points(bounds[0]),
        upper=_points(bounds[1]),
        images=images,
        further_images=further,
        floor=floor,
        standard_error=_points(drawn.standard_error[index]),
    )


def _mean_result(drawn: PairedBootstrap, old_ids: list[int], *, bounds: tuple[float, float]) -> ClassResult:
    known = [i for i in old_ids if not math.isnan(drawn.parent_iou[i])]
    return ClassResult(
        name="mean of the old classes",
        role="old",
        status="reported",
        before=_points(drawn.parent_iou[known].mean()) if known else None,
        after=_points(drawn.candidate_iou[known].mean()) if known else None,
        delta=_points(drawn.delta[-1]),
        lower=_points(bounds[0]),
        upper=_points(bounds[1]),
        images=int(drawn.images_with_class[-1]),
    )


def _further_images(
    drawn: PairedBootstrap,
    index: int,
    *,
    bounds: tuple[float, float],
    alphas: tuple[float, float],
    policy: GatePolicy,
) -> int | None:
    """Return how many more images of an undecided class would settle it, were its estimate to stay where it is.

    An interval shrinks with the square root of the number of images. A class whose estimate is inside the tolerance
    needs a half-width below the distance to the tolerance; one outside, below the distance to zero. The half-width is
    the larger of the observed one and the standard error times the Student-t quantile.
    """
    images = int(drawn.images_with_class[index])
    missing = max(0, policy.min_images_per_class - images)
    if missing:
        return missing
    delta, error = float(drawn.delta[index]), float(drawn.standard_error[index])
    tolerance = policy.tolerance_points / 100
    inside = delta > -tolerance
    room = delta + tolerance if inside else -delta
    observed = delta - bounds[0] if inside else bounds[1] - delta
    degrees = int(drawn.degrees[index])
    half_width = max(observed, -student_t_quantile(alphas[0] if inside else alphas[1], degrees) * error)
    if room <= 0 or (ratio := half_width / room) ** 2 > _HOPELESS_FACTOR:
        return None
    return max(1, math.ceil(images * ratio**2) - images)


def _points(share: float | np.floating[Any]) -> float | None:
    value = float(share)
    return None if math.isnan(value) else 100 * value


def _check_names(class_set: ClassSet, old: Collection[str], policy: GatePolicy) -> None:
    faults = FaultCollector("Gate")
    for name in sorted(set(old) - set(class_set.names)):
        faults.add(f"old class {name!r} is not in the candidate's class set.{did_you_mean(name, class_set.names)}")
    new = [n for n in class_set.foreground if n not in old]
    if len(new) == len(class_set.foreground):
        faults.add("no old class: a gate compares the classes that the parent already has")
    named = {*(policy.new_class_floors or {}), *(policy.new_class_ap_floors or {})}
    for name in sorted(named - {ANY_CLASS} - set(new)):
        faults.add(f"floor for {name!r}, which is no new class.{did_you_mean(name, new)}")
    faults.raise_if_any(f"Candidate's classes: {', '.join(class_set.names)}.")
