"""``cilseg list``: the versions in the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, print_table


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default="all models")
    ] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """List the versions in the registry: classes, method, parent, aliases, what the gate said.

    Examples:

      cilseg list

      cilseg list animals --json
    """
    from cilseg.registry.describe import DAMAGED, summaries

    rows = summaries(open_registry(registry), name)
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("The registry holds no version yet. Run `cilseg train` or `cilseg demo`.", err=True)
        return
    print_table(
        ("version", "classes", "method", "parent", "aliases", "gate", "registered"),
        [
            (
                row["ref"],
                DAMAGED if row["damaged"] else row["classes"],
                row["method"],
                row["parent"] if len(row["parent"] or "") < 71 else f"{row['parent'][:19]}...",
                ", ".join(f"@{alias}" for alias in row["aliases"]),
                row["gate"] or "-",
                row["created_at"][:16].replace("T", " "),
            )
            for row in rows
        ],
        right={"classes": True},
    )
