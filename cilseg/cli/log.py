"""``cilseg log``: the versions as a tree."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, stdout_console


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default="all models")
    ] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Show which version came from which: method, the classes each step added, the gate's verdict, aliases.

    Examples:

      cilseg log

      cilseg log animals --json
    """
    from rich.text import Text
    from rich.tree import Tree

    from cilseg.registry.lineage import lineage

    roots = lineage(open_registry(registry), name)
    if as_json:
        print_json(roots)
        return
    if not roots:
        typer.echo("The registry holds no version yet. Run `cilseg train` or `cilseg demo`.", err=True)
        return

    def add(tree: Tree, node: dict[str, Any]) -> None:
        branch = tree.add(Text(_line(node)))
        for child in node["children"]:
            add(branch, child)

    hidden = Tree("", hide_root=True)
    for root in roots:
        add(hidden, root)
    stdout_console().print(hidden)


def _line(node: dict[str, Any]) -> str:
    names = node["new_classes"]
    added = f" +{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    count = max(0, len(node["class_names"]) - 1)
    parts = [
        node["ref"],
        f"{node['method'] or '?'}{added or f' {count} classes'}",
        node["gate"] or "",
        " ".join(f"@{alias}" for alias in node["aliases"]),
        f"removed by gc {node['collected_at'][:10]}" if node["collected_at"] else "",
    ]
    return "  ".join(part for part in parts if part)
