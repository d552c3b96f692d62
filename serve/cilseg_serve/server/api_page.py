"""``/docs``: the OpenAPI document as one plain page, without scripts and without anything from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
details { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .4rem 0; }
summary { cursor: pointer; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }
.method { display: inline-block; min-width: 4rem; font-weight: 600; }
"""


def api_page(document: dict[str, Any]) -> str:
    """Return the page that describes an OpenAPI document."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["Other"])[0]
            groups.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    body = "".join(f"<h2>{html.escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: HTTP API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        "<body><main>"
        f"<h1>{title}: HTTP API</h1><p>{html.escape(document['info'].get('summary', ''))} Machine-readable: "
        '<a href="openapi.json">openapi.json</a>. Errors are <code>{"error": "..."}</code>. Where the server has '
        f"tokens, send <code>Authorization: Bearer TOKEN</code>.</p>{body}</main></body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    description = html.escape(operation.get("description") or operation.get("summary") or "")
    rows = "".join(_parameter(p) for p in operation.get("parameters", ()))
    table = f"<table><tr><th>name</th><th>in</th><th>type</th><th></th></tr>{rows}</table>" if rows else ""
    bodies = "".join(
        f"<p>Body: <code>{html.escape(media)}</code></p>{_example(content)}"
        for media, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    head = f'<span class="method">{method}</span> <code>{html.escape(path)}</code>'
    return f"<details><summary>{head}</summary><p>{description}</p>{table}{bodies}</details>"


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    kind = schema.get("type") or "/".join(s.get("type", "") for s in schema.get("anyOf", ()) if s.get("type") != "null")
    cells = (parameter["name"], parameter["in"], kind, parameter.get("description", schema.get("description", "")))
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _example(content: dict[str, Any]) -> str:
    example = content.get("example")
    return "" if example is None else f"<pre>{html.escape(json.dumps(example, indent=2))}</pre>"
