"""``cilseg push``: a version to a file or to another registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, open_registry, print_json, transfer_bar


def command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="Version to copy: name:3, name@alias, or sha256:abcd.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A file ending in .tar, a registry folder, or postgresql://...")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name in the other registry.", show_default="the same")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace attachments that differ there.")] = False,
    registry: RegistryOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Copy a version with its attachments into one file, or to another registry. Repeat it if it was interrupted.

    Aliases are not copied: what the other side serves is decided there.

    Examples:

      cilseg push animals@production animals.tar

      cilseg push animals:3 postgresql://ann@db.example.com/models
    """
    from cilseg.registry.transfer import is_package, push

    with transfer_bar(quiet=quiet) as progress:
        source = open_registry(registry, progress=progress)
        place = Path(target).absolute() if is_package(target) else open_registry(target, progress=progress)
        result = push(source, ref, place, name=name, replace=replace)
    if as_json:
        print_json(asdict(result))
        return
    typer.echo(f"{result.source} -> {result.target}  ({len(result.attachments)} attachments)")
    for file_name in result.kept:
        typer.echo(f"kept there: {file_name} differs; --replace replaces it", err=True)
    if is_package(target):
        typer.echo(f"Next: cilseg pull {Path(target).name}", err=True)
