"""``cilseg log``: the versions as a tree, every child below the version that it was trained from."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from cilseg.registry.registry import Registry

if TYPE_CHECKING:
    from sqlalchemy import Connection


def lineage(registry: Registry, name: str | None = None) -> list[dict[str, Any]]:
    """Return the roots of the tree (of the versions of ``name``), each with ``children``, in order of their numbers.

    A version whose parent is not here, or has another name while ``name`` is given, is a root; ``parent`` names it.
    Versions whose files were collected are there as well, with ``collected_at``.

    Raises:
        NotFoundError: no registry, or no model of that name.
    """
    from cilseg.registry import lookup

    def work(connection: Connection) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        if name is not None:
            lookup.require_name(connection, name)
        found = lookup.rows(connection, registry.store, name=name, collected=True)
        return [_node(version.ref, row, version.aliases) for version, row in found], lookup.refs_by_digest(connection)

    nodes, by_digest = registry.read(work)
    by_ref = {node["ref"]: node for node in nodes}
    children: defaultdict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for node in nodes:
        same_name = [r for r in by_digest.get(node["parent"], []) if r.rpartition(":")[0] == node["name"]]
        candidates = [*same_name, *by_digest.get(node["parent"], [])]
        above = next((ref for ref in candidates if ref in by_ref and ref != node["ref"]), None)
        if candidates:
            node["parent"] = candidates[0]
        if above is not None:
            known = by_ref[above]["class_names"]
            node["new_classes"] = [c for c in node["class_names"] if c not in known]
        children[above].append(node)
    for node in nodes:
        node["children"] = children[node["ref"]]
    return children[None]


def _node(ref: str, row: Any, aliases: tuple[str, ...]) -> dict[str, Any]:
    names = json.loads(row["classes"]) if row["classes"] is not None else []
    return {
        "ref": ref,
        "name": row["name"],
        "version": row["number"],
        "digest": row["digest"],
        "parent": row["parent"],
        "method": row["method"],
        "class_names": names,
        "new_classes": [],
        "gate": row["gate"],
        "aliases": list(aliases),
        "created_at": row["created_at"],
        "collected_at": row["collected_at"],
    }
