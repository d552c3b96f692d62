"""``cilseg gc``: removing what nothing needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, print_table, size_text


def command(
    keep_days: Annotated[
        float, typer.Option("--keep-days", help="Keep what was registered or aliased within so many days.")
    ] = 90.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only listed.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """List, or with --delete remove, versions that nothing needs: no alias, no recent history, no running server.

    The history stays, and so do the numbers. Also removes what killed processes left more than a day ago.

    Examples:

      cilseg gc

      cilseg gc --keep-days 30 --delete --reason "disk is nearly full"
    """
    from cilseg.registry.collect import collect_garbage
    from cilseg.registry.registry import user_name

    result = collect_garbage(
        open_registry(registry), keep_days=keep_days, dry_run=not delete, who=user_name(), why=reason
    )
    if as_json:
        print_json(result.to_json())
        return
    rows = [(d.ref, "removed" if delete else "would go", size_text(d.size_bytes)) for d in result.removable]
    kept = [(d.ref, "kept", "; ".join(d.reasons)) for d in result.decisions if d.reasons]
    if rows or kept:
        print_table(("version", "", "size, or why it is kept"), [*rows, *kept])
    for item in result.leftovers:
        typer.echo(f"{'removed' if delete else 'would go'}: {item['place']} ({item['what']})")
    total = f"{len(result.removable)} versions, {size_text(result.freed_bytes)}, {len(result.leftovers)} leftovers"
    typer.echo(f"{'Removed' if delete else 'Would remove'}: {total}.")
    if not delete and (result.removable or result.leftovers):
        typer.echo("Nothing was changed. Remove them with: cilseg gc --delete", err=True)
