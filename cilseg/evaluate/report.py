"""The gate's report: one self-contained HTML page for people, one JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.bundle import write_file_atomically
from cilseg.classes import ClassSet
from cilseg.errors import MissingDependencyError
from cilseg.evaluate.flows import PixelFate
from cilseg.evaluate.gate import ClassResult, GateResult
from cilseg.evaluate.gate_words import percent, points
from cilseg.evaluate.overlay import blend, data_uri
from cilseg.evaluate.run import Comparison, WorstImage

_TEMPLATE = "gate.html.j2"
_PLOT_WIDTH = 220.0
_TICK_MARGIN = 12.0
_STATUS_WORDS = {
    "kept": "✓ kept",
    "dropped": "✗ dropped",
    "undecided": "? undecided",
    "above floor": "✓ above floor",
    "below floor": "? below floor",
    "reported": "reported",
}
_FATES = ("right", "another old class", "background", "a new class")


def write_report(
    result: GateResult,
    *,
    path_html: Path,
    path_json: Path,
    class_set: ClassSet,
    comparison: Comparison | None = None,
    title: str = "",
    lineage: Mapping[str, object] | None = None,
    command: str = "",
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the verdict as HTML and JSON, each in one atomic step.

    Args:
        result: what :func:`cilseg.evaluate.gate.judge` returned.
        path_html: the page; it refers to nothing outside itself.
        path_json: ``gate.json``: the result, lineage, command and the ids of the worst images.
        class_set: of the candidate.
        comparison: gives the worst images; None leaves them out.
        title: what is judged, for example ``"animals:4 against animals:3"``.
        lineage: rows of the lineage block, in order: label -> value.
        command: the command that reproduces the verdict.
        facts: further keys of ``gate.json``.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        OSError: a folder cannot be written.
    """
    page = render_html(
        result, class_set=class_set, comparison=comparison, title=title, lineage=lineage, command=command
    )
    worst = comparison.worst if comparison else ()
    payload = {
        **result.to_json(),
        **(facts or {}),
        "title": title,
        "lineage": dict(lineage or {}),
        "command": command,
        "worst_images": [{"id": w.id, "lost_share": w.lost_share} for w in worst],
    }
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    write_file_atomically(path_html, page.encode())
    write_file_atomically(path_json, text.encode())


def render_html(
    result: GateResult,
    *,
    class_set: ClassSet,
    comparison: Comparison | None = None,
    title: str = "",
    lineage: Mapping[str, object] | None = None,
    command: str = "",
) -> str:
    """Return the page of :func:`write_report`.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as exc:
        raise MissingDependencyError("The gate's report needs jinja2. Run: pip install 'cilseg[train]'") from exc
    environment = Environment(
        loader=PackageLoader("cilseg.evaluate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(points=points, percent=percent)
    colors = {entry.name: entry.color for entry in class_set.entries}
    scale = _Scale.of(result)
    old = result.of_role("old")
    rows = [_row(c, color=colors[c.name], scale=scale) for c in (*old, *result.of_role("background"))]
    return environment.get_template(_TEMPLATE).render(
        result=result,
        title=title,
        verdict_word=result.headline.partition(":")[0],
        verdict_text=result.headline.partition(":")[2].strip(),
        cards=_cards(result),
        rows=rows,
        mean=_row(result.mean_old, color=None, scale=scale) if result.mean_old else None,
        new_rows=[_row(c, color=colors[c.name], scale=scale) for c in result.of_role("new")],
        n_old=len(old),
        scale=scale,
        plot_width=_PLOT_WIDTH,
        fate_names=_FATES,
        fates=[_fate(f) for f in result.fates],
        grown=result.grown,
        usurped=result.usurped,
        power={p.name: p for p in result.power},
        tag_precision=result.extras.tag_precision,
        most_grown=max((g.grown_px for g in result.grown), default=1),
        colors=colors,
        worst=[_pictures(w, class_set) for w in comparison.worst] if comparison else [],
        legend=_legend(comparison, class_set),
        lineage=dict(lineage or {}),
        command=command,
    )


@dataclass(frozen=True)
class _Scale:
    """Maps points of change to pixels of the interval plots, which share one scale."""

    low: float
    high: float
    tolerance: float

    @classmethod
    def of(cls, result: GateResult) -> _Scale:
        shown = [c for c in (*result.classes, result.mean_old) if c is not None and c.role != "new"]
        values = [v for c in shown for v in (c.delta, c.lower, c.upper) if v is not None]
        tolerance = result.policy.tolerance_points
        low, high = min([*values, -1.5 * tolerance]), max([*values, 0.5 * tolerance])
        margin = 0.04 * (high - low)
        return cls(max(low, -100.0) - margin, min(high, 100.0) + margin, tolerance)

    def x(self, value: float) -> float:
        return round(_PLOT_WIDTH * (value - self.low) / (self.high - self.low), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels: about five round numbers."""
        span = self.high - self.low
        step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if span / s <= 6 or s == 50)
        first = int(self.low // step) + 1
        values = [n * step for n in range(first, int(self.high // step) + 1)]
        places = [(self.x(v), f"{v:+g}" if v else "0") for v in values]
        return [(x, label) for x, label in places if _TICK_MARGIN <= x <= _PLOT_WIDTH - _TICK_MARGIN]


def _row(c: ClassResult, *, color: str | None, scale: _Scale) -> dict[str, Any]:
    """Return what a table row needs: the class, its words, and the pixels of its interval plot."""
    interval = None
    if c.role != "new" and c.delta is not None and c.lower is not None and c.upper is not None:
        interval = {"x0": scale.x(c.lower), "x1": scale.x(c.upper), "x": scale.x(c.delta)}
    words = _STATUS_WORDS[c.status]
    return {"c": c, "color": color, "status": words, "tone": c.status.replace(" ", "-"), "interval": interval}


def _cards(result: GateResult) -> list[tuple[str, str, str]]:
    """Return (label, value, small print) of the figures at the top."""
    if not result.n_images:
        return []
    cards = []
    if result.mean_old and result.mean_old.delta is not None:
        m = result.mean_old
        change = f"{points(m.before)} → {points(m.after)}"
        cards.append(("Old classes, mean IoU", change, f"{points(m.delta, sign=True)} points"))
    known = [c.after for c in result.of_role("new") if c.after is not None]
    if known:
        count = f"{len(known)} {'class' if len(known) == 1 else 'classes'}"
        cards.append(("New classes, mean IoU", points(sum(known) / len(known)), count))
    if result.flips and result.flips.get("pixels"):
        pixels = result.flips["pixels"]
        lost, won = (points(100 * result.flips[k] / pixels) for k in ("negative", "positive"))
        cards.append(("Pixels lost, won", f"−{lost} / +{won} %", "of scored pixels"))
    extras = result.extras
    if extras.regions is not None and extras.regions.regions:
        r = extras.regions
        cards.append(("Objects lost, won", f"−{r.negative} / +{r.positive}", f"of {r.regions:,} of old classes"))
    if extras.calibration_error is not None:
        before, after = extras.calibration_error
        cards.append(("Calibration error", f"{points(before)} → {points(after)}", "points (ECE)"))
    images = "annotated images" if result.n_images > 1 else "annotated image"
    attempt = f", candidate no. {extras.attempt} on it" if extras.attempt is not None else ""
    cards.append(("Gate set", f"{result.n_images:,}", images + attempt))
    return cards


def _fate(fate: PixelFate) -> dict[str, Any]:
    """Return the stacked bars of one class, before and after, with their text alternatives."""
    bars = []
    for when, shares in (("before", fate.before), ("after", fate.after)):
        text = ", ".join(f"{name} {percent(share, decimals=1)}" for name, share in zip(_FATES, shares, strict=True))
        bars.append({"when": when, "shares": shares, "text": f"{fate.name} {when}: {text}"})
    return {"name": fate.name, "bars": bars}


def _pictures(worst: WorstImage, class_set: ClassSet) -> dict[str, Any]:
    overlays = (("truth", worst.truth), ("before", worst.before), ("after", worst.after))
    pictures = [("image", data_uri(worst.image))]
    pictures += [(name, data_uri(blend(worst.image, mask, class_set))) for name, mask in overlays]
    return {"id": worst.id, "lost": percent(worst.lost_share, decimals=1), "pictures": pictures}


def _legend(comparison: Comparison | None, class_set: ClassSet) -> list[tuple[str, str]]:
    """Return (name, colour) of the foreground classes that the shown pictures contain."""
    shown: set[int] = set()
    for worst in comparison.worst if comparison else ():
        for mask in (worst.truth, worst.before, worst.after):
            shown.update(int(i) for i in set(mask.ravel().tolist()))
    return [(e.name, e.color) for i, e in enumerate(class_set.entries) if i in shown and i > 0]
