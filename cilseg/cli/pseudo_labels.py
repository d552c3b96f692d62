"""``cilseg pseudo-labels``: look at the labels that a two-stage method made from tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, RegistryOption, open_registry, print_json


def command(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="Version.", show_default="the one model, as in production")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write into.")] = Path(
        "pseudo_labels"
    ),
    image_root: Annotated[
        Path | None, typer.Option("--image-root", metavar="DIR", help="Folder of the images, to draw the labels over.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the pseudo-labels of a version (tags, cam, seam, ss, eps) as PNGs, and a contact sheet.

    Examples:

      cilseg pseudo-labels animals@candidate -o labels --image-root images
    """
    from cilseg.update.pseudo_labels import extract_pseudo_labels

    found = extract_pseudo_labels(open_registry(registry), ref, output, image_root=image_root)
    if as_json:
        print_json({"folder": str(found.folder), "labels": found.labels, "contact_sheet": str(found.sheet)})
        return
    typer.echo(f"{found.labels} label images in {found.folder}")
    if image_root is None:
        why = " (labels alone; --image-root DIR adds images)"
    else:
        why = "" if found.images_found else f" (labels alone; none of their images is in {image_root})"
    typer.echo(f"Contact sheet: {found.sheet}{why}")
