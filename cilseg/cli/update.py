"""``cilseg update``: new classes from image tags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
from cilseg.cli.gate_options import (
    JunitOption,
    OnRegression,
    OnRegressionOption,
    PolicyOption,
    check_writable,
    read_policy,
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
    from cilseg.evaluate.policy import GatePolicy
    from cilseg.evaluate.power import ClassPower
    from cilseg.registry import Registry, Version


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
    negatives: Annotated[
        Path | None, typer.Option("--negatives", metavar="DIR", help="More images, none of which shows a new class.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option("--image-root", metavar="DIR", help="Folder of the images.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the tag list and the gate set, say what is missing.")
    ] = False,
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
    prior_masks: Annotated[
        str | None,
        typer.Option(
            "--prior-masks", metavar="DIR", help="PNGs of where new classes may be, named like images (tags)."
        ),
    ] = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Register without judging; `cilseg validate` does that later.")
    ] = False,
    policy: PolicyOption = None,
    on_regression: OnRegressionOption = OnRegression.keep,
    junit: JunitOption = None,
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

      cilseg update --tags new_classes.json --policy strict --on-regression fuse --junit gate.xml
    """
    from cilseg.config import load_config

    check_writable(junit)
    asked = read_policy(policy) if policy else None
    target = open_registry(registry)
    version = target.resolve(parent)
    overrides = list(settings or [])
    overrides += [f"update.method={method}"] if method else []
    overrides += [f"seed={seed}"] if seed is not None else []
    base = {} if config else dict(version.manifest.config)
    check_methods = not dry_run or bool(overrides or config)  # a dry run without either need not load torch
    resolved = load_config(config, overrides, base=base, check_methods=check_methods)
    if asked is not None:
        resolved = resolved.model_copy(update={"gate": asked})
    if dry_run:
        if check_methods:
            from cilseg.methods import method_class

            method_class(resolved.update.method)
        power = None if no_gate else _power(target, version, resolved.gate, quiet=quiet)
        _dry_run(version, tags, negatives, image_root, untagged, json_, power, resolved.gate.tolerance_points)
        return

    from cilseg.cli.verdict import finish
    from cilseg.train.progress import training_bar
    from cilseg.update import UpdateRequest, update_version

    log_to_stderr(quiet=quiet)
    request = UpdateRequest(
        config=resolved,
        parent=version.ref,
        tags=tags,
        negatives=negatives,
        image_root=image_root,
        untagged=untagged,
        data=data,
        split=split,
        labels=labels,
        classes=split_names(classes) or (),
        shots=shots,
        replay=replay,
        saliency=saliency,
        prior_masks=prior_masks,
        name=name,
        gate=not no_gate,
        on_regression=on_regression.value,
        resume=resume,
    )
    with resumable(), training_bar(progress_console(quiet=quiet), resolved.update.method) as on_tick:
        result = update_version(target, request, on_tick=on_tick)
    finish(result.judgement, json_=json_, hint=registry_hint(registry), junit=junit)


def _power(target: Registry, version: Version, policy: GatePolicy, *, quiet: bool) -> Sequence[ClassPower] | None:
    from rich.progress import Progress

    from cilseg.update.power import power_of

    with Progress(console=progress_console(quiet=quiet), transient=True) as bar:
        task = bar.add_task("gate set")
        return power_of(
            target, version, policy=policy, on_image=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _print_power(version: Version, power: Sequence[ClassPower] | None, tolerance_points: float) -> None:
    if power is None:
        if version.manifest.gate_set is None:
            typer.echo(f"{version.ref} records no gate set, so the verdict will be HOLD.")
        return
    typer.echo(f"Gate set of {version.ref}, at a tolerance of {tolerance_points:g} points:")
    for entry in power:
        typer.echo(f"  {entry.sentence()}")


def _dry_run(
    version: Version,
    tags: Path | None,
    negatives: Path | None,
    image_root: Path | None,
    untagged: str | None,
    json_: bool,
    power: Sequence[ClassPower] | None,
    tolerance_points: float,
) -> None:
    from cilseg.data.check import check_images
    from cilseg.data.image_folders import negative_files
    from cilseg.data.taglist import load_tag_list
    from cilseg.data.tags import FEW_NEGATIVES
    from cilseg.errors import InputError

    if tags is None:
        raise InputError("--dry-run checks a tag list: give --tags FILE.")
    class_set = version.manifest.class_set
    tag_list: TagList = load_tag_list(tags, class_set=class_set, image_root=image_root, untagged=untagged)
    if negatives is not None:
        tag_list = tag_list.with_negatives(negative_files(negatives))
    check_images([image.file for image in tag_list.images], what=f"Tag list {tags}")
    rows = tag_list.summary(class_set)
    missing, wanted = tag_list.missing(), tag_list.wanted_negatives()
    if json_:
        fields = ("name", "is_new", "present", "absent", "unknown", "advice")
        print_json(
            {
                "images": len(tag_list),
                "trainable": not missing,
                "missing": missing,
                "negatives": tag_list.n_negatives,
                "wanted_negatives": wanted,
                "classes": [{f: getattr(r, f) for f in fields} for r in rows],
                "gate_power": None if power is None else [dataclasses.asdict(p) for p in power],
            }
        )
    else:
        print_table(
            ["class", "", "present", "absent", "unknown", "what is missing"],
            [(r.name, "new" if r.is_new else "old", r.present, r.absent, r.unknown, r.advice) for r in rows],
            title=f"{len(tag_list)} images for an update of {version.ref}",
            right={"present": True, "absent": True, "unknown": True},
        )
        if wanted:
            typer.echo(
                f"{tag_list.n_negatives} images show none of the new classes. About {wanted} more would help the model "
                "to tell old classes from new ones, best of look-alikes: --negatives DIR."
            )
        if tag_list.new_classes and tag_list.n_negatives < FEW_NEGATIVES:
            typer.echo(
                f"With fewer than {FEW_NEGATIVES} of them the method tags trains WILSON's losses in one round, and new "
                "classes are learned far less well, unless the parent stores images."
            )
        _print_power(version, power, tolerance_points)
        typer.echo("Not trainable yet." if missing else "Ready: run the same command without --dry-run.")
    if missing:
        raise typer.Exit(2)
