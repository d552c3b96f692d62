"""From finished cells to a table: means over seeds, conventions, classes, steps; Markdown lines and summary figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cilseg.bench.config import BASE, ProtocolConfig
from cilseg.bench.plan import Cell
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
    first_judge: str = ""
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules with at least one finished cell, in the order of the file."""
        return tuple(rule for rule in self.config.rules if any(row.rule == rule for row in self.rows))

    def newest(self, row: Row) -> str:
        """Return the classes of the step of ``row`` with their IoU; nothing for a base."""
        names = self.config.protocol(row.rule).step_classes(row.step) if row.step else ()
        return ", ".join(f"{name} {row.iou[name]}" for name in names)

    def by_supervision(self) -> dict[str, list[str]]:
        """Return heading -> row names, headings in the order in which they first appear."""
        groups: dict[str, list[str]] = {}
        for row in self.rows:
            names = groups.setdefault(row.supervision, [])
            if row.name not in names:
                names.append(row.name)
        return groups

    def published_after(self, row: Row, judge: str = "") -> list[PublishedRow]:
        """Return what was published for the method of ``row``, at the last of our rows with that method."""
        same = [r.name for r in self.rows if r.method == row.method]
        if row.name == BASE or row.name != same[-1]:
            return []
        return [p for p in self._published_on(judge) if p.method == row.method]

    def published_elsewhere(self, judge: str = "") -> list[PublishedRow]:
        """Return published rows of methods that no row of ours runs."""
        own = {r.method for r in self.rows}
        return [p for p in self._published_on(judge) if p.method not in own]

    def _published_on(self, judge: str) -> list[PublishedRow]:
        names = {judge} if judge else {"", self.first_judge}
        return [p for p in self.published if p.judge in names]


def make_table(
    config: ProtocolConfig, results: Mapping[Cell, Mapping[str, Any]], *, published: Sequence[PublishedRow] = ()
) -> Table:
    """Gather the finished cells of a protocol."""
    last = len(config.step_sizes) - 1
    judges = list(next(iter(results.values()))["scores"]) if results else []
    every = {
        judge: [
            row
            for name in (BASE, *config.methods)
            for rule in config.rules
            for step in range(last + 1)
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
        first_judge=first,
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
    """Return the lines of the whole table: main, other judges, conventions, steps, classes, published."""
    if not table.rows:
        return ["No cell is finished yet."]
    lines = [*_main(table, table.rows), ""]
    for judge, rows in table.judges.items():
        lines += [f"Judged on `{judge}`:", "", *_main(table, rows, judge), ""]
    lines += ["Conventions: A leaves background out, B counts it as old, C counts it in `all` alone.", ""]
    lines += [*_conventions(table), ""]
    if table.steps:
        lines += ["After every step:", "", *_steps(table), ""]
    for rule in table.rules:
        lines += [f"IoU per class, {rule}:", "", *_classes(table, rule), ""]
    for judge in ("", *table.judges):
        elsewhere = table.published_elsewhere(judge)
        if elsewhere:
            where = f", judged on `{judge}`" if judge else ""
            lines += [
                f"Published rows of methods that were not run here{where}:",
                "",
                *_published(table, elsewhere),
                "",
            ]
    return lines[:-1]


def _main(table: Table, rows: Sequence[Row], judge: str = "") -> list[str]:
    rules = table.rules
    heads = [f"{rule} {group}" for rule in rules for group in GROUPS]
    lines = [f"| row | learns from | {' | '.join(heads)} | seeds | s |", f"|---|---|{'---:|' * len(heads)}---:|---:|"]
    for heading, names in table.by_supervision().items():
        for name in names:
            own = {r.rule: r for r in rows if r.name == name}
            if not own:
                continue
            some = next(iter(own.values()))
            cells = [str(own[r].conventions["C"][g]) if r in own else "-" for r in rules for g in GROUPS]
            lines.append(
                f"| {some.label} | {heading} | {' | '.join(cells)} | {seeds_text(own)} | {seconds_text(own)} |"
            )
            for p in table.published_after(some, judge):
                shown = [f"*{v}*" for rule in rules for v in p.texts(rule)]
                lines.append(f"| *{p.label}* | *published: {p.where}* | {' | '.join(shown)} | | |")
    return lines


def seeds_text(own: Mapping[Rule, Row]) -> str:
    """Return the number of seeds, per rule where they differ."""
    return " / ".join(dict.fromkeys(str(len(r.seeds)) for r in own.values()))


def seconds_text(own: Mapping[Rule, Row]) -> str:
    """Return mean training seconds of each rule."""
    return " / ".join(f"{r.seconds.mean:.0f}" for r in own.values() if r.seconds.mean is not None)


def _conventions(table: Table) -> list[str]:
    lines = [
        "| row | rule | old (A, C) | old (B) | new (A, B, C) | all (A) | all (B, C) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    return lines + [f"| {r.label} | {r.rule} | {' | '.join(map(str, convention_values(r)))} |" for r in table.rows]


def convention_values(row: Row) -> tuple[Spread, ...]:
    """Return old (A, C), old (B), new, all (A), all (B, C)."""
    a, b = row.conventions["A"], row.conventions["B"]
    return a["old"], b["old"], a["new"], a["all"], b["all"]


def _steps(table: Table) -> list[str]:
    lines = ["| row | rule | step | old | new | all | newest classes |", "|---|---|---:|---:|---:|---:|---|"]
    for row in table.steps:
        c = row.conventions["C"]
        lines.append(
            f"| {row.label} | {row.rule} | {row.step} | {c['old']} | {c['new']} | {c['all']} | {table.newest(row)} |"
        )
    return lines


def _classes(table: Table, rule: Rule) -> list[str]:
    rows = [r for r in table.rows if r.rule == rule]
    lines = [f"| class | {' | '.join(r.label for r in rows)} |", f"|---|{'---:|' * len(rows)}"]
    for name in ("background", *table.config.classes):
        lines.append(f"| {name} | {' | '.join(str(r.iou.get(name, Spread())) for r in rows)} |")
    return lines


def _published(table: Table, rows: Sequence[PublishedRow]) -> list[str]:
    heads = [f"{rule} {group}" for rule in table.rules for group in GROUPS]
    lines = [f"| *method* | *source* | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for p in rows:
        shown = [f"*{v}*" for rule in table.rules for v in p.texts(rule)]
        lines.append(f"| *{p.label}* | *{p.where}* | {' | '.join(shown)} |")
    return lines
