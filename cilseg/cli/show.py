"""``cilseg show``: everything about one version."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json, print_table, size_text


def command(
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="name:3, name@alias, name, or sha256:abcd.",
            show_default="the one model, as it is in production",
        ),
    ] = None,
    as_json: JsonFlag = False,
    registry: RegistryOption = None,
) -> None:
    """Show a version: classes and their steps, lineage, data, code, configuration, files, metrics, alias histories.

    Examples:

      cilseg show animals@production

      cilseg show animals:3 --json
    """
    from cilseg.registry.describe import details

    found = details(open_registry(registry), ref)
    if as_json:
        print_json(found)
        return
    print_table(
        (found["ref"], ""),
        [
            ("digest", found["digest"]),
            ("registered", found["created_at"]),
            ("method", f"{found['method']} (seed {found['seed']})"),
            ("parent", found["parent"] or "none"),
            ("backbone", found["architecture"]["backbone"]),
            ("ancestors", " <- ".join(found["ancestors"]) or "none"),
            ("aliases", ", ".join(f"@{alias}" for alias in found["aliases"]) or "none"),
            ("gate", found["gate"] or ("not judged" if found["parent"] else "not needed")),
            *(
                ("FORCED", f"@{event['alias']} {event['when'][:16]} by {event['who']}: {event['why']}")
                for event in found["forced"]
            ),
            ("size", size_text(found["size_bytes"])),
            ("code", ", ".join(f"{key} {value}" for key, value in found["code"].items()) or "not recorded"),
            ("tag list", _tag_list(found["tag_list"])),
            ("training log", _training_log(found["training_log"])),
            ("gate set", _gate_set(found["gate_set"])),
            ("damaged", found["damaged"] or "no"),
            ("place", found["path"]),
        ],
    )
    print_table(
        ("id", "class", "colour", "step"),
        [(row["id"], row["name"], row["color"], row["step"]) for row in found["class_set"]],
        right={"id": True, "step": True},
    )
    print_table(("file", "sha256"), [(name, digest[7:23]) for name, digest in found["files"].items()])
    if found["attachments"]:
        print_table(
            ("attachment", "kind", "sha256"),
            [(row["file_name"], row["kind"], row["sha256"][7:23]) for row in found["attachments"]],
        )
    if found["metrics"]:
        print_table(
            ("metric", "value", "from"),
            [(key, value, name) for name, metrics in found["metrics"].items() for key, value in metrics.items()],
            right={"value": True},
        )
    for title in ("data", "environment", "config"):
        if found[title]:
            print_table((title, ""), list(_flat(found[title]).items()))
    for alias, events in found["history"].items():
        print_table(
            ("when", "move", "what", "who", "why"),
            [
                (
                    event["when"][:16].replace("T", " "),
                    f"{event['from_number'] or '-'} -> {event['to_number']}",
                    event["action"] + (" FORCED" if event["forced"] else ""),
                    event["who"],
                    event["why"],
                )
                for event in events
            ],
            title=f"history of @{alias}",
        )


def _tag_list(found: dict[str, Any] | None) -> str:
    return "none" if found is None else f"{found['file']}  {(found['content_sha256'] or found['sha256'])[:23]}"


def _training_log(found: dict[str, Any] | None) -> str:
    return "none" if found is None else f"{found['file']} ({found['lines']} lines), last: {found['last']}"


def _gate_set(found: dict[str, Any] | None) -> str:
    return "none" if found is None else f"{found['root']} ({found['split']})  {found['ids_sha256'][:23]}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
