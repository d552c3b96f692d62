"""``cilseg rollback``: back to what was served before."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json


def command(
    where: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [N]", help="Model and number of moves to undo.", show_default="the one model, 1 move"
        ),
    ] = None,
    alias: Annotated[str, typer.Option("--alias", help="Alias to move.")] = "production",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
    class_change: Annotated[
        bool, typer.Option("--class-change", help="Allow a version in which an id has another name.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="Only if the alias is here now: a number or a reference."),
    ] = None,
    who: Annotated[str | None, typer.Option("--who", help="Who does it.", show_default="the user's name")] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Point an alias back at the version before, or to before its last N moves. The history only grows.

    Examples:

      cilseg rollback

      cilseg rollback animals 2 --expect 7

      cilseg rollback animals --reason "cows missed at night"
    """
    name, steps = _name_and_steps(where or [])
    event = open_registry(registry).rollback(
        name, alias=alias, steps=steps, who=who, why=reason, class_change=class_change, expect=expect
    )
    if as_json:
        print_json(asdict(event))
    else:
        typer.echo(f"{event.name}@{event.alias}: {event.from_number} -> {event.to_number} (rolled back)")


def _name_and_steps(words: list[str]) -> tuple[str | None, int]:
    """Read ``[NAME] [N]``: a number alone is N."""
    *names, last = ["", *words]
    steps = int(last) if last.isdecimal() else 1
    given = names[1:] if last.isdecimal() else [*names[1:], *([last] if last else [])]
    if len(given) > 1:
        raise typer.BadParameter(f"expected [NAME] [N], got {' '.join(words)}")
    return (given[0] if given else None), steps
