"""``cilseg methods``: every way to learn new classes, and what each needs."""

from __future__ import annotations

import typer

from cilseg.cli.common import JsonFlag, print_json, print_table


def command(as_json: JsonFlag = False) -> None:
    """List the methods of `cilseg update --method NAME`: what they learn from, their idea, their paper.

    Examples:

      cilseg methods

      cilseg methods --json
    """
    from cilseg.methods import METHODS

    if as_json:
        print_json([method.describe() for method in METHODS.values()])
        return
    rows = [method.describe() for method in METHODS.values()]
    print_table(
        ("method", "learns from", "also needs", "idea", "paper"),
        [(r["name"], r["supervision"], ", ".join(r["needs"]) or "-", r["idea"], r["paper"]) for r in rows],
    )
    typer.echo("Options of each: docs/methods.md.")
