"""``cilseg bench``: methods and models measured against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    log_to_stderr,
    open_registry,
    print_json,
    print_table,
    resumable,
    stderr_console,
)
from cilseg.cli.options import SetOption

if TYPE_CHECKING:
    from cilseg.bench.protocol import OpenProtocol

app = typer.Typer(
    help="Measure methods and runtimes against each other.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def protocol(
    config: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Protocol preset, or a YAML file.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="DIR|NAME=DIR", help="Folder of the data (of the source NAME). Repeatable."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Folder of the cells (default: runs/NAME).")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="hub|FILE|none", help="Backbone weights to start from.")
    ] = None,
    withheld: Annotated[
        str | None, typer.Option("--withheld", metavar="FILE", help="Ids that base training never sees.")
    ] = None,
    cells: Annotated[
        list[str] | None, typer.Option("--cells", metavar="ROW[:SEED]", help="Only these rows. Repeatable.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Cells side by side (default: one per CUDA device, else one)."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each cell.")] = 1,
    settings: SetOption = None,
    list_: Annotated[bool, typer.Option("--list", help="Print where each cell stands; train nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check data, splits and cost; train nothing.")] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Replace cells made with other settings.")] = False,
    record: Annotated[
        str | None, typer.Option("--record", metavar="NAME", help="Write NAME.json and NAME.md in benchmarks/results.")
    ] = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Run methods x steps x seeds of a protocol from shared bases, and print one table.

    Repeat the command to go on where it stopped: finished cells are kept.

    Examples:

      cilseg bench protocol scenes-6-2

      cilseg bench protocol voc-animals-4-2 --data voc_animals --weights hub --check
    """
    from cilseg.bench.protocol import ProtocolRequest, open_protocol, run_protocol
    from cilseg.bench.protocol import record as write_record
    from cilseg.bench.table import markdown, summary
    from cilseg.errors import TrainingError

    console = stderr_console(quiet=quiet)
    log_to_stderr(quiet=quiet)
    opened = open_protocol(
        ProtocolRequest(
            config,
            work=work,
            data=data or (),
            withheld=withheld,
            weights=weights,
            overrides=settings or (),
            cells=cells or (),
        )
    )
    if list_:
        _list(opened, json_=json_)
        return
    if check:
        _check(opened, jobs=jobs, json_=json_)
        return
    with resumable(""):
        table, outcome = run_protocol(opened, jobs=jobs, threads=threads, redo=redo, say=console.print)
    if record:
        console.print(f"Recorded: {write_record(opened, table, record)}")
    if json_:
        failed = {cell.id: why for cell, why in {**outcome.failed, **outcome.skipped}.items()}
        print_json({"summary": summary(table), "failed": failed, "work": str(opened.work)})
    else:
        typer.echo("\n".join(markdown(table)))
        console.print(f"Table: {opened.work / 'table.md'}   Page: {opened.work / 'table.html'}")
    if outcome.failed:
        lines = [f"  - {cell.id}: {why}" for cell, why in outcome.failed.items()]
        lines += [f"  - {cell.id}: not run, {why}" for cell, why in outcome.skipped.items()]
        raise TrainingError(
            "\n".join([f"{len(outcome.failed)} of {len(opened.cells)} cells failed.", *lines])
            + "\nThe other cells are kept; correct the cause and repeat the command."
        )


def _list(opened: OpenProtocol, *, json_: bool) -> None:
    found = opened.states()
    if json_:
        print_json([{"cell": s.cell.id, "state": s.status, "note": s.note} for s in found])
        return
    print_table(["cell", "state", ""], [(s.cell.id, s.status, s.note) for s in found])


def _check(opened: OpenProtocol, *, jobs: int | None, json_: bool) -> None:
    from dataclasses import asdict

    from cilseg.bench.check import check_files, costs, probe, split_sizes

    check_files(opened.data)
    sizes = split_sizes(opened.data)
    results = {s.cell: s.result for s in opened.states() if s.result is not None}
    per_image_s = probe(opened.data)
    found = costs(opened.data, opened.cells, results, probe_s=per_image_s)
    total_s = sum(c.seconds for c in found)
    if json_:
        payload = {"sizes": [asdict(s) for s in sizes], "costs": [asdict(c) for c in found]}
        print_json({**payload, "probe_s_per_image": per_image_s, "seconds": total_s})
        return
    columns = ["rule", "step", "images", "published", "trained on"]
    rows = [(s.rule, s.step, s.images, s.published, s.trained) for s in sizes]
    print_table(columns, rows, title="Split sizes", right=dict.fromkeys(columns[1:], True))
    columns = ["row", "cells left", "iterations", "hours", "from"]
    rows_ = [
        (c.row, c.cells, c.iterations, f"{c.seconds / 3600:.2f}", "finished cells" if c.measured else "probe")
        for c in found
    ]
    print_table(columns, rows_, title="Cost", right=dict.fromkeys(columns[1:4], True))
    typer.echo(
        f"About {total_s / 3600:.1f} hours of training one cell after the other on this machine"
        f"{f', {jobs} side by side if it has the cores' if jobs else ''}, scoring not counted. The probe: "
        f"{1000 * per_image_s:.0f} ms per image of an iteration of base training; methods that run the old model too "
        "cost more."
    )


def latency(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="Version to measure; default: the served one.")
    ] = None,
    backends: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="Only these runtimes (and torch-eager). Repeatable."),
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="WxH", help="Picture size (default: 512x512). Repeatable.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Pictures per call (default: 1). Repeatable.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls of every row.")] = 50,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every runtime.")] = 1,
    images: Annotated[int, typer.Option("--images", min=0, help="Gate images for the mIoU; 0 leaves it out.")] = 50,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Also read the peak memory.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of latency.json and latency.svg.")
    ] = None,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure how fast the exported files of a version answer on this machine, and how well.

    Times are end to end, from the decoded image to the mask. Rows whose file did not pass its parity check on that
    runtime are marked and do not count.

    Examples:

      cilseg bench latency animals:2 --threads 2

      cilseg bench latency --size 512x512 --size 1024x512 --batch 1 --batch 4 -o latency
    """
    from cilseg.bench.latency import LatencyRequest, measure_version
    from cilseg.bench.latency_report import parse_size, table_rows, write_report

    console = stderr_console(quiet=quiet)
    request = LatencyRequest(
        sizes=tuple(parse_size(text) for text in sizes or ["512x512"]),
        batches=tuple(batches or [1]),
        backends=tuple(backends or ()),
        repeats=repeats,
        threads=threads,
        images=images,
        memory=memory,
    )
    version, rows = measure_version(open_registry(registry), ref, request, say=console.print)
    folder = out or Path(f"latency-{version.name}-{version.number}")
    payload = write_report(version, rows, request, folder)
    if json_:
        print_json(payload)
        return
    columns, lines = table_rows(rows)
    print_table(columns, lines, title=f"{version.ref}, {threads} threads", right=dict.fromkeys(columns[3:], True))
    console.print(f"Written: {folder / 'latency.json'} and {folder / 'latency.svg'}")


app.command("protocol")(protocol)
app.command("latency")(latency)
