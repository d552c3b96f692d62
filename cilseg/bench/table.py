"""From finished cells to a table: means over seeds, conventions, classes, steps; Markdown lines and summary figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cilseg.bench.cells import Cell
from cilseg.bench.config import BASE, ProtocolConfig
from cilseg.bench.published import PublishedRow
from cilseg.data.protocol import Rule

GROUPS: tuple[Literal["old", "new", "all"], ...] = ("old", "new", "all")
_SUPERVISION = {"masks": "pixel masks", "tags": "image tags"}
_RULE_NOTES = {
    "overlap": "overlap: a step sees every image with one of its classes",
    "disjoint": "disjoint: of these, the ones without a class of a later step",
    "partitioned": "partitioned: every image is in one step, the first whose classes it shows",
}


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (None for one seed) and number of seeds; nothing when no cell is finished."""

    mean: float | None = None
    deviation: float | None = None
    n: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        known = [v for v in values if v is not None]
        if not known:
            return cls()
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f}" + (f" ± {self.deviation:.1f}" if self.deviation is not None else "")


@dataclass(frozen=True)
class Row:
    """One method under one rule after one step."""

    name: str
    label: str
    method: str
    supervision: str
    rule: Rule
    step: int
    seeds: tuple[int, ...]
    conventions: Mapping[str, Mapping[str, Spread]]
    iou: Mapping[str, Spread]
    seconds: Spread
    images: Spread


@dataclass(frozen=True)
class Table:
    """Everything that a page shows of one protocol."""

    config: ProtocolConfig
    rows: tuple[Row, ...]
    """After the last step, in the order of the file, bases first; every rule."""
    steps: tuple[Row, ...]
    """After every step, for protocols of several steps."""
    judges: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Rows scored on the other sources."""
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, name: str, rule: str) -> Row | None:
        return next((r for r in self.rows if r.name == name and r.rule == rule), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Row names that have at least one finished cell, in order."""
        return tuple(dict.fromkeys(r.name for r in self.rows))

    def by_supervision(self) -> dict[str, list[str]]:
        """Return heading -> row names, headings in the order in which they first appear."""
        groups: dict[str, list[str]] = {}
        for row in self.rows:
            names = groups.setdefault(row.supervision, [])
            if row.name not in names:
                names.append(row.name)
        return groups

    def published_for(self, method: str) -> list[PublishedRow]:
        return [p for p in self.published if p.method == method and method != BASE]

    def published_elsewhere(self) -> list[PublishedRow]:
        """Return published rows of methods that no row of ours runs."""
        own = {r.method for r in self.rows}
        return [p for p in self.published if p.method not in own]


def make_table(
    config: ProtocolConfig, results: Mapping[Cell, Mapping[str, Any]], *, published: Sequence[PublishedRow] = ()
) -> Table:
    """Gather the finished cells of a protocol."""
    last = len(config.step_sizes) - 1
    judges = list(next(iter(results.values()))["scores"]) if results else []
    every = {
        judge: [
            row
            for step in range(last + 1)
            for name in (BASE, *config.methods)
            for rule in config.rules
            if (row := _row(config, results, name, rule, step, judge)) is not None
        ]
        for judge in judges
    }
    shown = {judge: tuple(r for r in rows if r.step == last or r.name == BASE) for judge, rows in every.items()}
    first = judges[0] if judges else ""
    return Table(
        config=config,
        rows=shown.get(first, ()),
        steps=tuple(every.get(first, ())) if last > 1 else (),
        judges={judge: shown[judge] for judge in judges[1:]},
        published=tuple(published),
        notes=tuple(_notes(config, results)),
    )


def _row(
    config: ProtocolConfig, results: Mapping[Cell, Mapping[str, Any]], name: str, rule: Rule, step: int, judge: str
) -> Row | None:
    found = {c.seed: r for c, r in results.items() if (c.row, c.rule, c.step) == (name, rule, step)}
    if not found or (name == BASE) != (step == 0):
        return None
    runs = list(found.values())
    scores = [r["scores"][judge] for r in runs]
    entry = config.methods.get(name)
    # A step's time is that of the whole chain since the base, which is shared.
    chain = [
        sum(
            r["train_s"] for c, r in results.items() if (c.row, c.rule, c.seed) == (name, rule, seed) and c.step <= step
        )
        for seed in found
    ]
    supervision = (entry.supervision if entry else None) or _SUPERVISION.get(
        runs[0]["supervision"], runs[0]["supervision"]
    )
    return Row(
        name=name,
        label=(entry.label if entry else None) or ("Base" if name == BASE else name),
        method=str(runs[0]["method"]),
        supervision="before the step" if name == BASE else supervision,
        rule=rule,
        step=step,
        seeds=tuple(sorted(found)),
        conventions={c: {g: Spread.of(s[c][g] for s in scores) for g in GROUPS} for c in ("A", "B", "C")},
        iou={k: Spread.of(s["iou"].get(k) for s in scores) for k in scores[0]["iou"]},
        seconds=Spread.of(chain),
        images=Spread.of(float(r["images"]) for r in runs),
    )


def _notes(config: ProtocolConfig, results: Mapping[Cell, Mapping[str, Any]]) -> list[str]:
    first = sum(config.step_sizes[:1])
    old, new = config.classes[:first], config.classes[first:]
    settings = config.settings.model_dump(exclude_defaults=True)
    changed = ", ".join(f"{k} {v}" for k, v in settings.items()) or "those of `cilseg`"
    notes = [
        f"mIoU in %, mean ± standard deviation over the seeds. old: {', '.join(old)}; new: {', '.join(new)}; all: with "
        "background (convention C). Base's `all` is over what it knows.",
        f"{'; '.join(_RULE_NOTES[r] for r in config.rules)}.",
        f"Settings that differ from the defaults: {changed}." if settings else "Settings: the defaults.",
    ]
    versions = {(r["versions"]["cilseg"], r["versions"]["torch"]) for r in results.values()}
    if len(versions) > 1:
        notes.append(f"Cells were made with several versions (cilseg, torch): {sorted(versions)}.")
    return notes


def summary(table: Table) -> dict[str, float | None]:
    """Return ``{rule}_{method}_{old,new,all}``, means over the seeds in convention C."""
    figures = {}
    for judge, rows in {"": table.rows, **table.judges}.items():
        for row in rows:
            for group in GROUPS:
                mean = row.conventions["C"][group].mean
                name = "_".join(filter(None, (row.rule, row.name.replace("-", "_"), judge, group)))
                figures[name] = None if mean is None else round(mean, 2)
    return figures


def markdown(table: Table) -> list[str]:
    """Return the lines of the whole table: main, conventions, classes, steps, other judges, published."""
    if not table.rows:
        return ["No cell is finished yet."]
    lines = [*_main(table, table.rows), ""]
    for judge, rows in table.judges.items():
        lines += [f"Judged on `{judge}`:", "", *_main(table, rows, published=False), ""]
    lines += ["Conventions: A leaves background out, B counts it as old, C counts it in `all` alone.", ""]
    lines += [*_conventions(table), ""]
    if table.steps:
        lines += ["After every step:", "", *_steps(table), ""]
    lines += ["IoU per class:", "", *_classes(table), ""]
    elsewhere = table.published_elsewhere()
    if elsewhere:
        lines += ["Published rows of methods that were not run here:", "", *_published(table, elsewhere), ""]
    return lines[:-1]


def _main(table: Table, rows: Sequence[Row], *, published: bool = True) -> list[str]:
    rules = [r for r in table.config.rules if any(row.rule == r for row in rows)]
    heads = [f"{rule} {group}" for rule in rules for group in GROUPS]
    lines = [
        f"| row | learns from | {' | '.join(heads)} | seeds | s |",
        f"|---|---|{'---:|' * len(heads)}---:|---:|",
    ]
    for heading, names in table.by_supervision().items():
        for name in names:
            own = {r.rule: r for r in rows if r.name == name}
            if not own:
                continue
            some = next(iter(own.values()))
            cells = [str(own[r].conventions["C"][g]) if r in own else "-" for r in rules for g in GROUPS]
            seeds = " / ".join(dict.fromkeys(str(len(r.seeds)) for r in own.values()))
            seconds = " / ".join(f"{r.seconds.mean:.0f}" for r in own.values() if r.seconds.mean is not None)
            lines.append(f"| {some.label} | {heading} | {' | '.join(cells)} | {seeds} | {seconds} |")
            last_of_method = [
                n for n in table.names if (table_row := _first(rows, n)) and table_row.method == some.method
            ][-1]
            if published and name == last_of_method:
                for p in table.published_for(some.method):
                    if any(rule in p.scores for rule in rules):
                        shown = [f"*{v}*" for rule in rules for v in p.texts(rule)]
                        lines.append(f"| *{p.label}* | *published, {p.where}* | {' | '.join(shown)} | | |")
    return lines


def _first(rows: Sequence[Row], name: str) -> Row | None:
    return next((r for r in rows if r.name == name), None)


def _conventions(table: Table) -> list[str]:
    lines = [
        "| row | rule | old (A, C) | old (B) | new (A, B, C) | all (A) | all (B, C) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in table.rows:
        a, b = row.conventions["A"], row.conventions["B"]
        values = (a["old"], b["old"], a["new"], a["all"], b["all"])
        lines.append(f"| {row.label} | {row.rule} | {' | '.join(map(str, values))} |")
    return lines


def _steps(table: Table) -> list[str]:
    lines = ["| row | rule | step | old | new | all | newest classes |", "|---|---|---:|---:|---:|---:|---:|"]
    for row in sorted(table.steps, key=lambda r: (table.names.index(r.name), table.config.rules.index(r.rule), r.step)):
        c = row.conventions["C"]
        newest = table.config.protocol(row.rule).step_classes(row.step)
        shown = ", ".join(f"{name} {row.iou[name]}" for name in newest) if row.step else ""
        lines.append(f"| {row.label} | {row.rule} | {row.step} | {c['old']} | {c['new']} | {c['all']} | {shown} |")
    return lines


def _classes(table: Table) -> list[str]:
    names = ("background", *table.config.classes)
    lines = [f"| row | rule | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
    for row in table.rows:
        values = [str(row.iou.get(name, Spread())) for name in names]
        lines.append(f"| {row.label} | {row.rule} | {' | '.join(values)} |")
    return lines


def _published(table: Table, rows: Sequence[PublishedRow]) -> list[str]:
    rules = [r for r in table.config.rules if any(r in p.scores for p in rows)]
    heads = [f"{rule} {group}" for rule in rules for group in GROUPS]
    lines = [f"| *method* | *source* | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for p in rows:
        shown = [f"*{v}*" for rule in rules for v in p.texts(rule)]
        lines.append(f"| *{p.label}* | *{p.where}* | {' | '.join(shown)} |")
    return lines


def widest(rows: Sequence[Row]) -> float:
    """Return the largest mean of ``rows`` rounded up to ten: the full length of a bar."""
    values = [s.mean for r in rows for s in r.conventions["C"].values() if s.mean is not None]
    return max(10.0, 10.0 * math.ceil(max(values, default=0.0) / 10.0))
