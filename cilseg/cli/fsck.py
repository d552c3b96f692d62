"""``cilseg fsck``: is the registry whole?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, open_registry, print_json, progress_console


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the files of the versions.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make the database again from the store, while nothing else uses it."),
    ] = False,
    store: Annotated[
        str | None, typer.Option("--store", help="Where the artifacts are, if the database cannot say.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare every file with its hash, and the database with the event log in the store. Exit code 5 on faults.

    Examples:

      cilseg fsck

      cilseg fsck --rebuild
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    from cilseg.errors import ArtifactError
    from cilseg.registry import Registry
    from cilseg.registry.check import check_registry

    target = open_registry(registry, store=store)
    if rebuild:
        count = Registry.rebuild(registry, store=store)
        typer.echo(f"The database was made again from {count} events.", err=True)
        target = open_registry(registry, store=store)
    columns = (TextColumn("checking {task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=progress_console(quiet=quiet)) as bar:
        task = bar.add_task("", total=None)
        report = check_registry(
            target,
            quick=quick,
            on_version=lambda ref, done, total: bar.update(task, description=ref, completed=done, total=total),
        )
    if as_json:
        print_json({**asdict(report), "clean": report.clean})
    else:
        counts = f"{report.versions} versions, {report.files} files, {report.events} events"
        for note in report.notes:
            typer.echo(f"note: {note}")
        for fault in report.faults:
            typer.echo(f"fault: {fault}")
        typer.echo(f"{counts}: {'clean' if report.clean else f'{len(report.faults)} faults'}.")
    if not report.clean:
        raise ArtifactError(
            f"The registry {target.url} has {len(report.faults)} "
            f"{'fault' if len(report.faults) == 1 else 'faults'}. Put damaged files back by registering or pulling the "
            "same version again; a wrong database is made again with `cilseg fsck --rebuild`."
        )
