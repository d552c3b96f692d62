"""``cilseg promote``: what the fleet serves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json


def command(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="Version to promote: name:3, name@candidate, or sha256:abcd.")
    ],
    alias: Annotated[str, typer.Option("--alias", help="Alias to move.")] = "production",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote without the gate's PROMOTE; needs --reason and stays on record.")
    ] = False,
    class_change: Annotated[
        bool, typer.Option("--class-change", help="Allow a version in which an id has another name.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="Only if the alias is here now: a number, a reference, or 'none'."),
    ] = None,
    who: Annotated[str | None, typer.Option("--who", help="Who does it.", show_default="the user's name")] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Point an alias at a version, in one transaction. A version that the gate has not passed is refused (exit code 3).

    Examples:

      cilseg promote animals@candidate

      cilseg promote animals:4 --force --reason "hot fix, see #12"
    """
    event = open_registry(registry).promote(
        ref, alias=alias, who=who, why=reason, force=force, class_change=class_change, expect=expect
    )
    if as_json:
        print_json(asdict(event))
    elif not event.moved:
        typer.echo(f"{event.name}@{event.alias} is already at {event.name}:{event.to_number}; nothing was changed.")
    else:
        typer.echo(f"{event.name}@{event.alias}: {event.from_number or 'nothing'} -> {event.to_number}")
