"""``cilseg update``: new classes from image tags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    log_to_stderr,
    open_registry,
    print_json,
    print_table,
    progress_console,
    registry_hint,
    resumable,
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

if TYPE_CHECKING:
    from cilseg.data.taglist import TagList
    from cilseg.registry import Version


def command(
    tags: Annotated[Path | None, typer.Option("--tags", metavar="FILE", help="Tag list (JSON).")] = None,
    parent: Annotated[
        str | None, typer.Option("--from", metavar="REF", help="Version to start from; default: the served one.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAME", help="How to learn; `cilseg methods` lists them.")
    ] = None,
    untagged: Annotated[
        str | None, typer.Option("--untagged", metavar="absent|unknown", help="What an unnamed new class means.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option("--image-root", metavar="DIR", help="Folder of the images.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the tag list and say what is missing.")] = False,
    data: DataOption = None,
    split: Annotated[str, typer.Option("--split", help="List of the images in --data.")] = "train",
    labels: LabelsOption = None,
    classes: ClassesOption = None,
    shots: Annotated[
        int | None, typer.Option("--shots", metavar="K", help="Annotated images per new class (pifs).")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="DIR", help="One folder of images per old class (recall).")
    ] = None,
    saliency: Annotated[
        str | None,
        typer.Option("--saliency", metavar="DIR|builtin", help="A grey picture per image of where objects are (eps)."),
    ] = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Register without judging; `cilseg validate` does that later.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Register under this name instead of the parent's.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    resume: ResumeFlag = False,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Teach the served model new classes, register the candidate and ask the gate.

    Exit code 3 when the gate rejects or holds the candidate. --data and --classes are for methods that learn from
    masks. Settings come from the parent version unless --config is given.

    Examples:

      cilseg update --tags new_classes.json --dry-run

      cilseg update --tags new_classes.json
    """
    from cilseg.config import load_config

    target = open_registry(registry)
    version = target.resolve(parent)
    overrides = list(settings or [])
    overrides += [f"update.method={method}"] if method else []
    overrides += [f"seed={seed}"] if seed is not None else []
    base = {} if config else dict(version.manifest.config)
    resolved = load_config(config, overrides, base=base)
    if dry_run:
        _dry_run(version, tags, image_root, untagged, json_)
        return

    from cilseg.cli.verdict import finish
    from cilseg.train.progress import training_bar
    from cilseg.update import UpdateRequest, update_version

    log_to_stderr(quiet=quiet)
    request = UpdateRequest(
        config=resolved,
        parent=version.ref,
        tags=tags,
        image_root=image_root,
        untagged=untagged,
        data=data,
        split=split,
        labels=labels,
        classes=split_names(classes) or (),
        shots=shots,
        replay=replay,
        saliency=saliency,
        name=name,
        gate=not no_gate,
        resume=resume,
    )
    with resumable(), training_bar(progress_console(quiet=quiet), resolved.update.method) as on_tick:
        result = update_version(target, request, on_tick=on_tick)
    finish(result.judgement, json_=json_, hint=registry_hint(registry))


def _dry_run(version: Version, tags: Path | None, image_root: Path | None, untagged: str | None, json_: bool) -> None:
    from cilseg.data.check import check_images
    from cilseg.data.taglist import load_tag_list
    from cilseg.errors import InputError

    if tags is None:
        raise InputError("--dry-run checks a tag list: give --tags FILE.")
    class_set = version.manifest.class_set
    tag_list: TagList = load_tag_list(tags, class_set=class_set, image_root=image_root, untagged=untagged)
    check_images([image.file for image in tag_list.images], what=f"Tag list {tags}")
    rows = tag_list.summary(class_set)
    missing = tag_list.missing()
    if json_:
        fields = ("name", "is_new", "present", "absent", "unknown", "advice")
        print_json(
            {
                "images": len(tag_list),
                "trainable": not missing,
                "missing": missing,
                "classes": [{f: getattr(r, f) for f in fields} for r in rows],
            }
        )
    else:
        print_table(
            ["class", "", "present", "absent", "unknown", "what is missing"],
            [(r.name, "new" if r.is_new else "old", r.present, r.absent, r.unknown, r.advice) for r in rows],
            title=f"{len(tag_list)} images for an update of {version.ref}",
            right={"present": True, "absent": True, "unknown": True},
        )
        typer.echo("Not trainable yet." if missing else "Ready: run the same command without --dry-run.")
    if missing:
        raise typer.Exit(2)
