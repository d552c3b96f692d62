"""``cilseg drift``: do new images look like those that the model was judged on?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    open_registry,
    print_json,
    print_table,
    progress_console,
)

if TYPE_CHECKING:
    from cilseg.registry import Version


def command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="name:3, name@alias or name.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="New images; left out: only make the reference.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make the reference again.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one inference.")] = None,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare new images with the gate set: class mix, confidence, brightness, contrast, saturation, sharpness.

    The first call runs the exported model over the gate set and attaches the result to the version; /v1/drift of the
    server uses it too. Exit code 1 when something drifted.

    Examples:

      cilseg drift animals@production

      cilseg drift animals@production photos/ --json
    """
    from rich.progress import Progress

    from cilseg.errors import NotFoundError
    from cilseg_serve.drift import compare
    from cilseg_serve.drift_reference import ATTACHMENT, load_reference, observe_files, save_reference
    from cilseg_serve.segmenter import Segmenter
    from cilseg_serve.sources import find_items

    target = open_registry(registry)
    version = target.resolve(ref)
    files = [] if folder is None else [Path(item.file) for item in find_items([folder])]
    segmenter = Segmenter(version.ref, registry=target, threads=threads)
    with Progress(console=progress_console(quiet=quiet), transient=True) as bar:
        if again or ATTACHMENT not in target.attachments(version):
            task = bar.add_task("gate set")
            seen, _ = observe_files(
                segmenter, _gate_images(version), on_image=lambda n, of: bar.update(task, completed=n, total=of)
            )
            save_reference(target, version, seen)
        reference = load_reference(target, version)
        if reference is None:
            raise NotFoundError(f"{version.ref} has no reference.")
        if folder is None:
            typer.echo(f"{version.ref}: reference of {len(reference)} images.")
            return
        task = bar.add_task("images")
        now, failures = observe_files(segmenter, files, on_image=lambda n, of: bar.update(task, completed=n, total=of))
    for file, reason in failures:
        typer.echo(f"skipped: {file}: {reason}", err=True)
    report = compare(reference, now)
    if json_:
        print_json({"version": version.ref, **asdict(report), "sentence": report.sentence()})
    else:
        rows = [
            (
                s.name,
                s.detail or "",
                f"{s.before:.3f}",
                f"{s.now:.3f}",
                f"{s.value:.3f}",
                f"{s.chance:.3f}",
                "drift" if s.drifted else "",
            )
            for s in report.signals
        ]
        if rows:
            print_table(
                ("signal", "most moved", "before", "now", "distance", "chance", ""),
                rows,
                title=f"{len(now)} images of {folder} against the {len(reference)} of the gate set of {version.ref}",
            )
        typer.echo(report.sentence())
    if report.status == "drift":
        raise typer.Exit(1)


def _gate_images(version: Version) -> list[Path]:
    """Return the images of the gate set that ``version`` records."""
    from cilseg.data.source import open_source
    from cilseg.errors import InputError

    gate_set = version.manifest.gate_set
    if gate_set is None:
        raise InputError(f"{version.ref} records no gate set, so there is nothing to compare with.")
    source = open_source(
        gate_set.root,
        split=gate_set.split,
        layout=gate_set.layout,  # type: ignore[arg-type]
        label_names=gate_set.label_names,
    )
    if source.fingerprint()["ids_sha256"] != gate_set.ids_sha256:
        raise InputError(f"The gate set {gate_set.root} ({gate_set.split}) lists other images than it did.")
    return list(source.image_paths)
