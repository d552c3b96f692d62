"""``cilseg validate``: scores and the gate's verdict."""

from __future__ import annotations

from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, open_registry, progress_console, registry_hint
from cilseg.cli.options import DataOption, LabelsOption


def command(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="Version to judge, e.g. animals:2.")],
    against: Annotated[str | None, typer.Option("--against", metavar="REF", help="Default: its parent.")] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option("--split", help="List of the images in --data.")] = "val",
    labels: LabelsOption = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="IoU points an old class may lose.")] = 3.0,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score CANDIDATE on the gate set, compare it with its parent, write the report, exit 0 (PROMOTE) or 3.

    Examples:

      cilseg validate animals:2

      cilseg validate animals:2 --against animals:1 --data more_images --split val
    """
    from rich.progress import Progress

    from cilseg.evaluate.gate import GatePolicy
    from cilseg.update.bundle import gate_set_of
    from cilseg.update.judge import validate_version

    gate_set = None
    if data is not None:
        from cilseg.data.source import open_source

        gate_set = gate_set_of(open_source(data, split=split, label_names=labels))
    target = open_registry(registry)
    with Progress(console=progress_console(quiet=quiet), transient=True) as bar:
        task = bar.add_task("judging")
        judgement = validate_version(
            target,
            candidate,
            against=against,
            gate_set=gate_set,
            policy=GatePolicy(tolerance_points=tolerance),
            on_image=lambda done, total: bar.update(task, completed=done, total=total),
        )

    from cilseg.cli.verdict import finish

    finish(judgement, json_=json_, hint=registry_hint(registry))
