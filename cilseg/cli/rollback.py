"""``cilseg rollback``: back to what was served before."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Model.", show_default="the one model in the registry")
    ] = None,
    alias: Annotated[str, typer.Option("--alias", help="Alias to move.")] = "production",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
    class_change: Annotated[
        bool, typer.Option("--class-change", help="Allow a version in which an id has another name.")
    ] = False,
    who: Annotated[str | None, typer.Option("--who", help="Who does it.", show_default="the user's name")] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Point an alias back at the version before; a second time, one further back. The history only grows.

    Examples:

      cilseg rollback

      cilseg rollback animals --reason "cows missed at night"
    """
    event = open_registry(registry).rollback(name, alias=alias, who=who, why=reason, class_change=class_change)
    if as_json:
        print_json(asdict(event))
    else:
        typer.echo(f"{event.name}@{event.alias}: {event.from_number} -> {event.to_number} (rolled back)")
