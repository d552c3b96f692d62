"""``cilseg history``: where an alias pointed, since when, moved by whom, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, print_table


def command(
    alias: Annotated[
        str, typer.Argument(metavar="ALIAS", help="animals@production, @candidate, or production.")
    ] = "@production",
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Show every move of an alias, the oldest first. Forced promotions are marked; nothing is ever taken out.

    Examples:

      cilseg history animals@production

      cilseg history --json
    """
    from cilseg.registry.describe import moves_of

    name, events = moves_of(open_registry(registry), alias)
    if as_json:
        print_json([asdict(event) for event in events])
        return
    print_table(
        ("#", "when", "move", "what", "who", "why", "gate report"),
        [
            (
                event.sequence,
                event.when[:19].replace("T", " "),
                f"{event.from_number or '-'} -> {event.to_number}",
                event.action + (" FORCED" if event.forced else "") + (" (ids renamed)" if event.class_change else ""),
                event.who,
                event.why,
                (event.gate_report or "-")[:34],
            )
            for event in events
        ],
        title=f"history of {name}",
        right={"#": True},
    )
