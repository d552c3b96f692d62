"""``cilseg predict``: masks and overlays for images and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, print_json, print_table, progress_console


def command(
    inputs: Annotated[list[Path], typer.Argument(metavar="IMG|DIR", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks/, overlays/ and summary.json.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="name:3, name@alias, name, or a bundle folder (default: the one model there is)."
        ),
    ] = None,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Also write overlays/*.jpg.")] = True,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Run a model without a passed parity check.")
    ] = False,
    backend: Annotated[
        str,
        typer.Option("--backend", help="auto, onnxruntime, onnxruntime-cuda, openvino, tensorrt."),
    ] = "auto",
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Segment images: palette PNG masks, overlays and a summary with the coverage per class.

    Exit code 1 if an image could not be read; the others are done all the same.

    Examples:

      cilseg predict photos/ -o out

      cilseg predict a.jpg b.jpg -o out --model animals@production --no-overlays
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cilseg_serve.predict import predict_paths
    from cilseg_serve.segmenter import Segmenter

    segmenter = Segmenter(model, registry=registry, allow_unverified=allow_unverified, backend=backend)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}", markup=False), console=progress_console(quiet=quiet)
    ) as progress:
        task = progress.add_task("", total=None, visible=False)
        result = predict_paths(
            segmenter,
            inputs,
            out,
            overlays=overlays,
            on_progress=lambda done, total, file: progress.update(
                task, completed=done, total=total, description=file.name, visible=True
            ),
        )
    for file, reason in result.failures:
        typer.echo(f"skipped: {reason if str(file) in reason else f'{file}: {reason}'}", err=True)
    if json_:
        print_json(result.summary)
    else:
        count = len(result.images)
        rows = [
            (
                name,
                sum(image.coverage[name] > 0 for image in result.images),
                f"{100 * sum(image.coverage[name] for image in result.images) / max(1, count):.1f} %",
            )
            for name in segmenter.class_set.names
        ]
        print_table(
            ("class", "images", "mean coverage"),
            rows,
            title=f"{count} {'image' if count == 1 else 'images'} by {segmenter.name} -> {out}",
            right={"images": True, "mean coverage": True},
        )
    if result.failures:
        raise typer.Exit(1)
