"""``cilseg migrate``: the tables of a shared database."""

from __future__ import annotations

from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json


def command(
    store: Annotated[
        str | None,
        typer.Option(
            "--store", envvar="CILSEG_STORE", help="Folder or URL of the artifacts, recorded in the database."
        ),
    ] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Make the tables of a shared registry, or bring them to this cilseg's schema. Registries in folders need no call.

    Run it once, when everybody who uses the registry can update: older versions of cilseg then refuse it.

    Examples:

      cilseg migrate --registry postgresql://ann@db.example.com/models --store s3://models/registry

      cilseg migrate
    """
    target = open_registry(registry)
    before, after = target.migrate(store=store)
    if as_json:
        print_json({"registry": target.url, "store": target.store.url, "before": before, "after": after})
    elif before == after:
        typer.echo(f"{target.url} is at schema {after} already; artifacts in {target.store.url}.")
    else:
        typer.echo(f"{target.url}: schema {before or 'none'} -> {after}; artifacts in {target.store.url}.")
