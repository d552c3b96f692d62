"""``cilseg export``: ONNX with checked answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    open_registry,
    print_json,
    registry_hint,
    stderr_console,
)


def command(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="Version to export; default: the served one.")
    ] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add the soft-max of the winning class.")] = False,
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits at output stride.")] = False,
    images: Annotated[
        list[Path] | None, typer.Option("--images", metavar="FILE", help="Images for the check. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also copy model.onnx there.")
    ] = None,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Export a version to ONNX, check its answers against the trained model on real images, attach it.

    Exit code 4 when the answers differ; the worst image is then saved and nothing is attached.

    Examples:

      cilseg export animals:2

      cilseg export --confidence -o animals.onnx
    """
    from cilseg.update import export_version

    outputs = ("mask", *(["confidence"] if confidence else []), *(["logits"] if logits else []))
    console = stderr_console(quiet=quiet)
    with console.status("exporting and comparing"):
        result = export_version(open_registry(registry), ref, outputs=outputs, images=images or (), copy_to=output)
    if json_:
        print_json({"version": result.version.ref, "model": str(result.attachment.path), "parity": result.parity})
        return
    typer.echo(output or result.attachment.path)
    parity = result.parity
    console.print(
        f"{result.version.ref}: {parity['pixels']} pixels of {parity['images']} images at {parity['sizes']} sizes "
        f"compared with the trained model, {parity['differing']} differ ({parity['ties']} ties)."
    )
    hint = registry_hint(registry)
    console.print(f"Next: cilseg predict IMAGES -o OUT --model {result.version.ref}{hint}")
