"""``cilseg train``: a base model from masks."""

from __future__ import annotations

from typing import Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    log_to_stderr,
    open_registry,
    print_json,
    progress_console,
    registry_hint,
    resumable,
    stderr_console,
)
from cilseg.cli.options import (
    ClassesOption,
    ConfigOption,
    DataOption,
    LabelsOption,
    ResumeFlag,
    SeedOption,
    SetOption,
    split_names,
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model in the registry.")],
    data: DataOption = None,
    classes: ClassesOption = None,
    labels: LabelsOption = None,
    split: Annotated[str, typer.Option("--split", help="List of the training images.")] = "train",
    gate_split: Annotated[
        str, typer.Option("--gate-split", help="List of the images that judge; '' for none.")
    ] = "val",
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="hub|FILE|none", help="Backbone weights to start from.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option("--memory", metavar="N", help="Store N of the images for later steps to train on again."),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    resume: ResumeFlag = False,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the base model of a lineage from masks and register it as NAME:1.

    Examples:

      cilseg train animals --data voc --classes cat,dog,horse,person --config mobilenetv2 --weights hub

      cilseg train shapes --data scenes --config tiny
    """
    from cilseg.config import load_config
    from cilseg.errors import InputError

    if data is None:
        raise InputError("Give the annotated images with --data DIR (see `cilseg train --help`).")
    overrides = list(settings or [])
    overrides += [f"model.weights={weights}"] if weights else []
    overrides += [f"train.memory={memory}"] if memory is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    resolved = load_config(config or "mobilenetv2", overrides, check_methods=True)

    from cilseg.train.progress import training_bar
    from cilseg.update import BaseRequest, train_version, validate_version

    console = stderr_console(quiet=quiet)
    log_to_stderr(quiet=quiet)
    target = open_registry(registry)
    request = BaseRequest(
        name=name,
        data=data,
        config=resolved,
        classes=split_names(classes),
        labels=labels,
        split=split,
        gate_split=gate_split or None,
        resume=resume,
    )
    with resumable(), training_bar(progress_console(quiet=quiet), "base step") as on_tick:
        version = train_version(target, request, on_tick=on_tick)
    scores = validate_version(target, version.ref).scores if gate_split else None
    if json_:
        print_json({"version": version.ref, "digest": version.digest, "path": str(version.path), "scores": scores})
        return
    typer.echo(version.ref)
    if scores:
        console.print(
            f"mIoU on {scores['images']} images of {gate_split}: old classes {scores['old']}, all {scores['all']}"
        )
    hint = registry_hint(registry)
    console.print(f"Next: cilseg update --tags new_classes.json{hint}   or   cilseg export {version.ref}{hint}")
