"""``cilseg predict``: masks of images, folders, archives, lists and object stores."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, print_json, print_table, progress_console

if TYPE_CHECKING:
    from cilseg_serve.predict import Engine


class EngineName(StrEnum):
    """What does the work."""

    LOCAL = "local"
    RAY = "ray"


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Images, folders, tar archives, CSV lists, or URLs such as s3://bucket/dir."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks/, overlays/ and summary.json.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="name:3, name@alias, name, or a bundle folder (default: the one model there is)."
        ),
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="png, rle, polygons, coco or geotiff; repeat for several (default: png)."),
    ] = None,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Also write overlays/*.jpg.")] = True,
    tile: Annotated[
        int | None, typer.Option("--tile", help="Run images in overlapping tiles of this many pixels.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", help="Pixels that neighbouring tiles share (default: a quarter of a tile)."),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Only every N-th image, from the I-th on: 1/4 to 4/4.")
    ] = "1/1",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an interrupted run of the same command has done.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images given to the model at once.")] = 1,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="local: threads of this process; ray: a Ray cluster.")
    ] = EngineName.LOCAL,
    workers: Annotated[int, typer.Option("--workers", help="Models that a Ray cluster runs.")] = 2,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Run a model without a passed parity check.")
    ] = False,
    precision: Annotated[str, typer.Option("--precision", help="Exported file to run: fp32, fp16, int8.")] = "fp32",
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

      cilseg predict photos.tar more.csv -o out --format coco --no-overlays --resume

      cilseg predict s3://bucket/photos -o out --shard 2/4

      cilseg predict village.tif -o out --format geotiff --tile 1024
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cilseg.errors import InputError
    from cilseg_serve.pipeline import LocalEngine
    from cilseg_serve.predict import Shard, predict_paths
    from cilseg_serve.segmenter import Segmenter
    from cilseg_serve.sliding_window import SlidingWindow

    part = Shard.parse(shard)
    if overlap is not None and tile is None:
        raise InputError("--overlap needs --tile.")
    runs_on: Engine = LocalEngine(batch_size=batch_size)
    if engine is EngineName.RAY:
        from cilseg_serve.ray_engine import RayEngine

        runs_on = RayEngine(registry=registry, workers=workers, allow_unverified=allow_unverified, backend=backend)
    segmenter = Segmenter(
        model, registry=registry, allow_unverified=allow_unverified, backend=backend, precision=precision
    )
    window = None if tile is None else SlidingWindow(segmenter, tile_px=tile, overlap_px=overlap)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}", markup=False), console=progress_console(quiet=quiet)
    ) as progress:
        task = progress.add_task("", total=None, visible=False)
        try:
            result = predict_paths(
                segmenter,
                inputs,
                out,
                formats=format_ or ["png"],
                overlays=overlays,
                window=window,
                shard=part,
                resume=resume,
                engine=runs_on,
                on_progress=lambda done, total, file: progress.update(
                    task, completed=done, total=total, description=file.rpartition("/")[2], visible=True
                ),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("repeat the command with --resume to go on") from None
    for file, reason in result.failures:
        typer.echo(f"skipped: {reason if file in reason else f'{file}: {reason}'}", err=True)
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
