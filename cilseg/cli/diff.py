"""``cilseg diff``: how two versions differ."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, print_table

_SECTIONS = ("fields", "config", "data", "environment")


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="name:3, name@alias, name, or sha256:abcd.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other version.")],
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Show how version B differs from version A: classes, metrics per class, configuration, data, environment.

    Examples:

      cilseg diff animals@production animals@candidate

      cilseg diff animals:1 animals:2 --json
    """
    from cilseg.registry.compare import difference

    found = difference(open_registry(registry), a, b)
    if as_json:
        print_json(found)
        return
    first, second = found["a"], found["b"]
    classes = found["classes"]
    rows: list[tuple[object, ...]] = [
        *((row["id"], "added", row["name"], row["step"]) for row in classes["added"]),
        *((row["id"], "removed", row["name"], row["step"]) for row in classes["removed"]),
        *((row["id"], "renamed", " -> ".join(row["name"]), row["step"][1]) for row in classes["renamed"]),
    ]
    if rows:
        print_table(("id", "class", "name", "step"), rows, right={"id": True, "step": True})
    else:
        typer.echo(f"{first} and {second} have the same classes.")
    if found["metrics"]:
        print_table(
            ("metric", first, second, "change"),
            [(name, *(_figure(v) for v in values)) for name, values in found["metrics"].items()],
            right=dict.fromkeys((first, second, "change"), True),
        )
    changed = [
        (f"{section}.{name}" if section != "fields" else name, _short(values[0]), _short(values[1]))
        for section in _SECTIONS
        for name, values in found[section].items()
    ]
    if changed:
        print_table(("what", first, second), changed)
    if found["same_weights"]:
        typer.echo("The weights are the same.")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
