"""``cilseg bench protocol``: open, check, run what is missing, and write the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.bench.check import check_sizes
from cilseg.bench.config import ProtocolConfig, load_protocol
from cilseg.bench.data import ProtocolData, located, open_data
from cilseg.bench.page import render_page
from cilseg.bench.plan import Cell, planned
from cilseg.bench.published import published_rows
from cilseg.bench.record import results_directory, write_record
from cilseg.bench.runner import Outcome, State, picked, run_cells, states
from cilseg.bench.table import Table, make_table, markdown, summary
from cilseg.bundle import write_file_atomically

TABLE, PAGE, SUMMARY = "table.md", "table.html", "summary.json"


@dataclass(frozen=True)
class ProtocolRequest:
    """What the command line asks for."""

    protocol: str
    work: Path | None = None
    data: Sequence[str] = ()
    withheld: str | None = None
    weights: str | None = None
    overrides: Sequence[str] = ()
    cells: Sequence[str] = ()

    @property
    def command(self) -> str:
        """The command that runs it again, without folders."""
        parts = ["cilseg bench protocol", shlex.quote(Path(self.protocol).name)]
        parts += ["--data DIR"] if self.data else []
        parts += ["--weights FILE"] if self.weights else []
        return " ".join([*parts, *(f"--set {shlex.quote(o)}" for o in self.overrides)])


@dataclass(frozen=True)
class OpenProtocol:
    """A checked request: data that is there and fits, the work folder, the cells that are wanted."""

    request: ProtocolRequest
    data: ProtocolData
    work: Path
    cells: list[Cell]

    @property
    def config(self) -> ProtocolConfig:
        return self.data.config

    def states(self) -> list[State]:
        return states(self.data, self.work, self.cells)

    def table(self, results: Mapping[Cell, Mapping[str, Any]] | None = None) -> Table:
        """Return the table of every finished cell of the protocol, or of ``results``."""
        if results is None:
            found = states(self.data, self.work, planned(self.config))
            results = {s.cell: s.result for s in found if s.result is not None}
        return make_table(self.config, results, published=published_rows(self.config.name))


def open_protocol(request: ProtocolRequest) -> OpenProtocol:
    """Read the protocol, find and open its data, and compare the splits with their published sizes.

    Raises:
        InputError: faults of the file, the folders, the masks, the sizes, or ``cells``.
    """
    overrides = [*request.overrides, *([f"model.weights={request.weights}"] if request.weights else [])]
    config = load_protocol(request.protocol, overrides)
    work = request.work or Path("runs") / config.name
    cells = picked(planned(config), request.cells)
    data = open_data(located(config, work, data=request.data, withheld=request.withheld), work)
    check_sizes(data)
    return OpenProtocol(request, data, work, cells)


def run_protocol(
    opened: OpenProtocol,
    *,
    jobs: int | None = None,
    threads: int = 1,
    redo: bool = False,
    say: Callable[[str], None],
) -> tuple[Table, Outcome]:
    """Run the missing cells and write ``table.md``, ``table.html`` and ``summary.json`` into the work folder.

    Raises:
        ConflictError: see :func:`cilseg.bench.runner.run_cells`.
    """
    outcome = run_cells(opened.data, opened.work, opened.cells, jobs=jobs, threads=threads, redo=redo, say=say)
    table = opened.table()
    text = [f"# {opened.config.title or opened.config.name}", "", *markdown(table), "", *table.notes, ""]
    write_file_atomically(opened.work / TABLE, "\n".join(text).encode())
    write_file_atomically(opened.work / PAGE, render_page(table, command=opened.request.command).encode())
    figures = json.dumps(summary(table), indent=1) + "\n"
    write_file_atomically(opened.work / SUMMARY, figures.encode())
    return table, outcome


def record(opened: OpenProtocol, table: Table, name: str, *, note: str = "") -> Path:
    """Write ``NAME.json`` and ``NAME.md`` in the form of every benchmark; return the path of the JSON."""
    found = [s for s in states(opened.data, opened.work, planned(opened.config)) if s.result is not None]
    rows = [{k: v for k, v in (s.result or {}).items() if k not in ("identity", "versions")} for s in found]
    for row in rows:
        row["scores"] = {
            judge: {k: v for k, v in scores.items() if k != "confusion"} for judge, scores in row["scores"].items()
        }
    return write_record(
        name,
        folder=results_directory(opened.work),
        command=opened.request.command,
        rows=rows,
        summary=summary(table),
        table=markdown(table),
        note=" ".join([*table.notes, *([note] if note else [])]),
    )
