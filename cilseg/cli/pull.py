"""``cilseg pull``: a version from a file or from another registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    open_registry,
    print_json,
    registry_hint,
    transfer_bar,
)


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file ending in .tar, a registry folder, or postgresql://...")
    ],
    ref: Annotated[
        str | None,
        typer.Argument(metavar="REF", help="Version in the other registry.", show_default="its one model"),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name here.", show_default="the same")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace attachments that differ here.")] = False,
    registry: RegistryOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Take a version with its attachments from a file or another registry. Repeat it if it was interrupted.

    It gets the next number of its name here, or the one it has already. No alias moves.

    Examples:

      cilseg pull animals.tar

      cilseg pull /mnt/lab/cilseg-registry animals@production --name street
    """
    from cilseg.registry.transfer import is_package, pull

    with transfer_bar(quiet=quiet) as progress:
        place = Path(source).absolute() if is_package(source) else open_registry(source, progress=progress)
        result = pull(open_registry(registry, progress=progress), place, ref, name=name, replace=replace)
    if as_json:
        print_json(asdict(result))
        return
    typer.echo(f"{result.source} -> {result.target}  ({len(result.attachments)} attachments)")
    for file_name in result.kept:
        typer.echo(f"kept here: {file_name} differs; --replace replaces it", err=True)
    typer.echo(f"Next: cilseg promote {result.target}{registry_hint(registry)}", err=True)
