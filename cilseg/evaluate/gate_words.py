"""What the gate says in words: the headline, why, what to do next, and the error rate it states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilseg.evaluate.average_precision import AveragePrecision
    from cilseg.evaluate.flows import ConfusionGrowth
    from cilseg.evaluate.gate import ClassResult, GateExtras, GatePolicy, Verdict


_WEAK_POINTS = 40.0
"""New classes below this IoU are named among what to tag next."""


def points(value: float | None, *, sign: bool = False) -> str:
    """Return points of IoU with one decimal; a dash for None."""
    if value is None:
        return "-"
    rounded = round(value, 1) + 0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def percent(share: float, *, decimals: int = 2) -> str:
    """Return a share as percent with at most ``decimals`` decimals."""
    text = f"{100 * share:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + " %"


def gate_set_advice(policy: GatePolicy) -> str:
    return (
        f"Annotate masks for at least {policy.min_images_per_class} images of every old class "
        "(images that training has not seen), then run: cilseg validate CANDIDATE --data FOLDER --split NAME."
    )


def attempts_note(attempt: int, *, alpha: float) -> str:
    """Say what judging several candidates on one gate set does to the error rate (union bound)."""
    return (
        f"Candidate number {attempt} of this lineage on this gate set: were all {attempt} of them worse by the "
        f"tolerance, up to {percent(min(1.0, attempt * alpha))} of such series would promote at least one of them by "
        f"luck (a single candidate: {percent(alpha)}). A fresh gate set starts again at one."
    )


@dataclass(frozen=True)
class Told:
    """A judged candidate, told in sentences."""

    verdict: Verdict
    classes: tuple[ClassResult, ...]
    policy: GatePolicy
    n_images: int
    extras: GateExtras
    grown: Sequence[ConfusionGrowth] = ()

    def _tags_of(self, name: str) -> AveragePrecision | None:
        return next((t for t in self.extras.tag_precision if t.name == name), None)

    def _of(self, *status: str) -> list[ClassResult]:
        return [c for c in self.classes if c.status in status]

    @property
    def _old(self) -> list[ClassResult]:
        return [c for c in self.classes if c.role == "old"]

    @property
    def _tolerance(self) -> str:
        return f"{points(self.policy.tolerance_points)} points"

    def headline(self) -> str:
        if self.verdict == "PROMOTE":
            return f"PROMOTE: no old class lost {self._tolerance} of IoU or more."
        if self.verdict == "REJECT":
            return (
                f"REJECT: {_names(self._of('dropped'))} got worse; the loss is estimated at more than "
                f"{self._tolerance} of IoU."
            )
        undecided, below = self._of("undecided"), self._of("below floor")
        if undecided:
            return (
                f"HOLD: the gate set cannot decide {len(undecided)} of {len(self._old)} old classes "
                f"({_names(undecided)})."
            )
        return f"HOLD: the old classes are kept, but {_names(below)} did not reach the floor."

    def reasons(self) -> tuple[str, ...]:
        lines = [self._reason(c) for c in [*self._of("dropped"), *self._of("undecided"), *self._of("below floor")]]
        if kept := self._of("kept"):
            worst = min(kept, key=lambda c: c.lower if c.lower is not None else 0.0)
            lines.append(
                f"{len(kept)} of {len(self._old)} old classes are kept: each lower bound is above "
                f"-{self._tolerance} (nearest: {worst.name}, {_change(worst)})."
            )
        return tuple(lines)

    def _reason(self, c: ClassResult) -> str:
        if c.delta is None and c.role == "new":
            tags, floor = self._tags_of(c.name), points(self.policy.ap_floor_of(c.name))
            if tags is None:
                return f"{c.name}: no mask and no tagged image shows it, so its floor is not checked."
            seen = ", measured on images it was trained on" if tags.seen_in_training else ""
            return (
                f"{c.name}: average precision {points(tags.value)} (lower bound {points(tags.lower)}) on "
                f"{tags.present} tagged {_images(tags.present)} that show it{seen}; the floor is {floor}."
            )
        if c.delta is None:
            return f"{c.name}: no annotated image of the gate set shows it."
        if c.status == "dropped":
            return (
                f"{c.name} went from {points(c.before)} to {points(c.after)}, {_change(c)}; "
                f"the drop is real (upper bound {points(c.upper, sign=True)})."
            )
        if c.images < self.policy.min_images_per_class:
            return (
                f"{c.name}: it is on {c.images} {_images(c.images)} only, a verdict needs "
                f"{self.policy.min_images_per_class} ({_change(c)})."
            )
        if c.status == "below floor":
            return f"{c.name}: IoU {points(c.after)} (lower bound {points(c.lower)}), the floor is {points(c.floor)}."
        return f"{c.name}: {_change(c)}, so a drop of {self._tolerance} is not ruled out."

    def advice(self) -> tuple[str, ...]:
        lines = []
        if dropped := self._of("dropped"):
            lines.append(
                f"Do not promote. Train again with old-class tags on images of {_names(dropped)}, or with fewer "
                "epochs or a lower learning rate; look first at the images and confusions below."
            )
        lines += [self._class_advice(c) for c in self._of("undecided")]
        for c in self._of("below floor"):
            if c.delta is None:
                least = self.policy.min_images_per_class
                lines.append(
                    f"{c.name}: tag images that training has not seen, at least {least} of them with it, and run: "
                    "cilseg validate CANDIDATE --tags FILE; or draw masks of it in the gate set."
                )
            elif c.images < self.policy.min_images_per_class:
                missing = self.policy.min_images_per_class - c.images
                lines.append(f"{c.name}: annotate {_more(missing)}.")
            else:
                lines.append(f"{c.name}: tag more images that show it (and some that do not), then update again.")
        return tuple(lines)

    def to_tag(self) -> tuple[str, ...]:
        """Return what to tag next: what was lost, what is confused, and new classes that are still weak."""
        lines = []
        for c in [c for c in self._old if c.delta is not None and c.delta < 0 and c.status in ("dropped", "undecided")]:
            partners = [g.prediction for g in self.grown if g.truth == c.name and g.prediction != "background"][:2]
            beside = f", above all beside or instead of {' and '.join(partners)}" if partners else ""
            lines.append(f"Images that show {c.name}{beside}: tag {c.name} present (old-class tags keep it).")
        weak = [c for c in self.classes if c.role == "new" and c.after is not None and c.after < _WEAK_POINTS]
        if weak:
            named = ", ".join(f"{c.name} (IoU {points(c.after)})" for c in weak)
            lines.append(f"More images of {named}, in other surroundings than so far.")
        takers = {g.prediction for g in self.grown if g.truth != "background"} & {
            c.name for c in self.classes if c.role == "new"
        }
        for name in sorted(takers):
            taken = [g.truth for g in self.grown if g.prediction == name and g.truth != "background"][:3]
            lines.append(
                f"Images with {' or '.join(taken)} and without {name}: tag {name} absent, it takes their pixels."
            )
        if any(g.truth == "background" for g in self.grown[:3]):
            lines.append(
                "Images that show none of the classes: tag the new classes absent, they spill into background."
            )
        return tuple(lines)

    def _class_advice(self, c: ClassResult) -> str:
        if c.further_images is None:
            return (
                f"{c.name}: its estimate ({points(c.delta, sign=True)}) lies so near the tolerance that more gate "
                "images alone will hardly settle it; train again with more tags of it, or set another tolerance."
            )
        number = c.further_images
        if c.delta is None or c.images < self.policy.min_images_per_class:
            return f"{c.name}: annotate at least {_more(number)} (now {c.images})."
        outcome = "clear it" if c.delta > -self.policy.tolerance_points else "confirm the drop"
        return (
            f"{c.name}: about {_more(number, kind='annotated ')} (now {c.images}) would {outcome}, "
            f"if the estimate stays at {points(c.delta, sign=True)}."
        )

    def notes(self) -> tuple[str, ...]:
        lines = []
        if self.extras.attempt is not None and self.extras.attempt > 1:
            lines.append(attempts_note(self.extras.attempt, alpha=self.policy.alpha))
        for c in self._old:
            if c.before is not None and c.before <= self.policy.tolerance_points:
                lines.append(
                    f"{c.name} had only {points(c.before)} points before: it cannot lose more than the tolerance, "
                    "so passing says nothing about it."
                )
        for c in self.classes:
            if c.role == "background" and c.upper is not None and c.delta is not None:
                if c.upper < 0 and c.delta < -self.policy.tolerance_points:
                    lines.append(
                        f"Background fell by {points(-c.delta)} points (reported, not judged): the candidate paints "
                        "classes where there is nothing."
                    )
            elif c.role == "new" and c.delta is None and self._tags_of(c.name) is None:
                lines.append(f"{c.name} is new and no annotated image shows it, so its quality is not measured here.")
        return tuple(lines)

    def error_statement(self) -> str:
        method = (
            f"one-sided paired bootstrap, {self.n_images} {_images(self.n_images)}, {self.policy.resamples:,} resamples"
        )
        level = percent(self.policy.alpha)
        if self.verdict == "PROMOTE":
            return (
                f"Stated error rate {level}: had any old class truly lost {self._tolerance} or more, a gate set like "
                f"this one would still say PROMOTE in at most {level} of cases ({method}; nominal level)."
            )
        if self.verdict == "REJECT":
            return (
                f"Stated error rate {level}: had no old class truly got worse, a gate set like this one would still "
                f"say REJECT in at most {level} of cases ({method}, corrected over {len(self._old)} old classes; "
                "nominal level)."
            )
        return (
            f"HOLD is no judgement of the model: at the error rate of {level} the data allow neither PROMOTE nor "
            f"REJECT ({method})."
        )


def _change(c: ClassResult) -> str:
    return f"change {points(c.delta, sign=True)} points, lower bound {points(c.lower, sign=True)}"


def _more(number: int, *, kind: str = "") -> str:
    return f"{number} more {kind}{'image that shows' if number == 1 else 'images that show'} it"


def _images(number: int) -> str:
    return "image" if number == 1 else "images"


def _names(classes: Iterable[ClassResult]) -> str:
    names = [c.name for c in classes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
