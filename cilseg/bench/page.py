"""The table of a protocol as one self-contained HTML page with bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cilseg.bench.published import PublishedRow
from cilseg.bench.table import GROUPS, Row, Spread, Table, convention_values, seconds_text, seeds_text
from cilseg.data.protocol import Rule
from cilseg.errors import MissingDependencyError

_TEMPLATE = "protocol.html.j2"


def render_page(table: Table, *, command: str = "") -> str:
    """Return the page; it refers to nothing outside itself.

    Args:
        table: what :func:`cilseg.bench.table.make_table` gathered.
        command: the command that repeats it.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as exc:
        raise MissingDependencyError("The page needs jinja2. Run: pip install 'cilseg[train]'") from exc
    environment = Environment(
        loader=PackageLoader("cilseg.evaluate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    config = table.config
    judged = {"": table.rows, **table.judges}
    return environment.get_template(_TEMPLATE).render(
        title=config.title or config.name,
        steps_text=" → ".join(
            ", ".join(config.protocol(config.rules[0]).step_classes(s)) for s in range(len(config.step_sizes))
        ),
        groups=GROUPS,
        rules=table.rules,
        mains=[(judge, _main(table, rows, judge)) for judge, rows in judged.items()],
        elsewhere=[(judge, found) for judge in judged if (found := _elsewhere(table, judge))],
        conventions=[(row, convention_values(row)) for row in table.rows],
        steps=[(row, table.newest(row)) for row in table.steps],
        classes=[(rule, *_classes(table, rule)) for rule in table.rules],
        notes=table.notes,
        settings=config.settings.model_dump(mode="json"),
        command=command,
    )


def _main(table: Table, rows: Sequence[Row], judge: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return heading -> lines of the main table; a published line follows ours and is marked as such."""
    sections = []
    for heading, names in table.by_supervision().items():
        lines: list[dict[str, Any]] = []
        for name in names:
            own: Mapping[Rule, Row] = {r.rule: r for r in rows if r.name == name}
            if not own:
                continue
            some = next(iter(own.values()))
            cells = [[own[r].conventions["C"][g] if r in own else Spread() for g in GROUPS] for r in table.rules]
            lines.append(
                {
                    "label": some.label,
                    "cells": cells,
                    "seeds": seeds_text(own),
                    "seconds": seconds_text(own),
                    "source": "",
                }
            )
            lines += [_published(table, p) for p in table.published_after(some, judge)]
        sections.append((heading, lines))
    return sections


def _published(table: Table, p: PublishedRow) -> dict[str, Any]:
    cells = [[Spread(mean=v) for v in p.scores.get(rule, (None, None, None))] for rule in table.rules]
    return {"label": p.label, "cells": cells, "seeds": "", "seconds": "", "source": p.where}


def _elsewhere(table: Table, judge: str) -> list[tuple[str, list[dict[str, Any]]]]:
    lines = [_published(table, p) for p in table.published_elsewhere(judge)]
    return [("", lines)] if lines else []


def _classes(table: Table, rule: Rule) -> tuple[list[str], list[tuple[str, int, list[Spread]]]]:
    """Return column labels, and per class its name, its step and one value per column."""
    rows = [r for r in table.rows if r.rule == rule]
    protocol = table.config.protocol(rule)
    step_of = {name: s for s in range(protocol.n_steps) for name in protocol.step_classes(s)}
    lines = [
        (name, step_of.get(name, 0), [r.iou.get(name, Spread()) for r in rows])
        for name in ("background", *table.config.classes)
    ]
    return [r.label for r in rows], lines
