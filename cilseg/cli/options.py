"""Option types that several training verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", metavar="NAME|FILE", help="Preset (mobilenetv2, tiny) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one setting, e.g. update.optimiser.epochs=20. Repeatable."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run of the same command.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="VOC layout, or a folder with images/, masks/, train.txt.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--labels", metavar="voc|FILE", help="Names of the mask values: voc, or a file with one name a line."),
]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", metavar="A,B,...", help="Classes to learn, in the order of their ids.")
]


def split_names(text: str | None) -> list[str] | None:
    """Return the names of a comma-separated option, or None where it was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
