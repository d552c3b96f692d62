"""``cilseg scenes``: write a data set of generated scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, print_json, progress_console


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; absent or empty.")],
    train: Annotated[int, typer.Option("--train", help="Number of training scenes.")] = 400,
    val: Annotated[int, typer.Option("--val", help="Number of validation scenes.")] = 100,
    size: Annotated[str, typer.Option("--size", metavar="PX|HxW", help="Side in pixels, or height x width.")] = "128",
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other scenes.")] = 0,
    classes: Annotated[
        list[str] | None, typer.Option("--class", "-c", metavar="NAME", help="Only this class; may be repeated.")
    ] = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Generate textured scenes with exact masks, in the folder layout that `cilseg train` reads.

    The same request gives the same files, and asking again for what is already there does nothing.

    Examples:

      cilseg scenes scenes

      cilseg scenes more-scenes --train 1000 --val 200 --size 160x224 --seed 7
    """
    from rich.progress import Progress

    from cilseg.data.scenes import SCENES_JSON, generate_scenes, parse_size

    with Progress(console=progress_console(quiet=quiet), transient=True) as progress:
        task = progress.add_task("scenes", total=max(0, train) + max(0, val))
        root = generate_scenes(
            folder,
            train=train,
            val=val,
            size_px=parse_size(size),
            seed=seed,
            classes=classes,
            on_scene=lambda done: progress.update(task, completed=done),
        )
    if json_:
        print_json({"root": str(root), **json.loads((root / SCENES_JSON).read_text(encoding="utf-8"))})
    else:
        typer.echo(root)
