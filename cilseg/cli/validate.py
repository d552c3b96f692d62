"""``cilseg validate``: scores and the gate's verdict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, RegistryOption, open_registry, progress_console, registry_hint
from cilseg.cli.gate_options import (
    JunitOption,
    OnRegression,
    OnRegressionOption,
    PolicyOption,
    check_writable,
    read_policy,
)
from cilseg.cli.options import DataOption, LabelsOption


def command(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="Version to judge, e.g. animals:2.")],
    against: Annotated[str | None, typer.Option("--against", metavar="REF", help="Default: its parent.")] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option("--split", help="List of the images in --data.")] = "val",
    labels: LabelsOption = None,
    policy: PolicyOption = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="IoU points an old class may lose, instead of the policy's.")
    ] = None,
    tags: Annotated[
        Path | None, typer.Option("--tags", metavar="FILE", help="Tagged images for new classes without masks.")
    ] = None,
    on_regression: OnRegressionOption = OnRegression.keep,
    junit: JunitOption = None,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score CANDIDATE on the gate set, compare it with its parent, write the report, exit 0 (PROMOTE) or 3.

    Examples:

      cilseg validate animals:2

      cilseg validate animals:2 --against animals:1 --data more_images --split val

      cilseg validate animals:2 --policy strict --junit gate.xml
    """
    from rich.progress import Progress

    from cilseg.update.bundle import gate_set_of
    from cilseg.update.judge import fuse_on_regression, policy_of, tags_to_score, validate_version

    check_writable(junit)
    gate_set = None
    if data is not None:
        from cilseg.data.source import open_source

        gate_set = gate_set_of(open_source(data, split=split, label_names=labels))
    target = open_registry(registry)
    asked = read_policy(policy) if policy else policy_of(target.resolve(candidate))
    if tolerance is not None:
        asked = type(asked).model_validate({**asked.model_dump(), "tolerance_points": tolerance})
    options = _options(policy=policy, tolerance=tolerance, data=data, split=split, labels=labels, tags=tags)
    with Progress(console=progress_console(quiet=quiet), transient=True) as bar:
        task = bar.add_task("judging")

        def on_image(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        judgement = validate_version(
            target,
            candidate,
            against=against,
            gate_set=gate_set,
            policy=asked,
            tags=tags_to_score(target, candidate, against=against, tags=tags) if tags is not None else None,
            options=options,
            on_image=on_image,
        )
        if on_regression is OnRegression.fuse:
            fused = fuse_on_regression(target, judgement, gate_set=gate_set, options=options, on_image=on_image)
            judgement = fused or judgement

    from cilseg.cli.verdict import finish

    finish(judgement, json_=json_, hint=registry_hint(registry), junit=junit)


def _options(**given: object) -> str:
    """Return the options that another verdict needs to be the same one, as they are typed."""
    if given["data"] is None:
        given.pop("split")
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)
