"""``cilseg demo``: the whole story in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cilseg.cli.common import JsonFlag, QuietFlag, print_json, print_table, progress_console, resumable, stderr_console
from cilseg.cli.options import ConfigOption, SetOption

if TYPE_CHECKING:
    from cilseg.demo import DemoResult


def command(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the demo; made if missing.")] = Path("demo"),
    config: ConfigOption = "tiny",
    settings: SetOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Generate scenes, train, add two classes from tags, gate, promote, export, predict; fine-tuning as the foil.

    Example:

      cilseg demo
    """
    from functools import partial

    from cilseg.config import load_config

    resolved = load_config(config, settings or [], check_methods=True)

    from cilseg.demo import run_demo
    from cilseg.train.progress import training_bar

    console = stderr_console(quiet=quiet)
    root.mkdir(parents=True, exist_ok=True)
    with resumable(""):
        result = run_demo(root, resolved, bar=partial(training_bar, progress_console(quiet=quiet)), say=console.print)
    if json_:
        judgement = result.judgement
        print_json(
            {
                "rows": result.rows,
                "verdict": judgement.result.verdict if judgement and judgement.result else None,
                "promoted": result.promoted,
                "parity": result.export.parity if result.export else None,
                "report": str(judgement.report) if judgement else None,
                "picture": str(result.picture),
                "seconds": result.seconds,
            }
        )
        return
    _show(root, result)


def _show(root: Path, result: DemoResult) -> None:
    judgement = result.judgement
    assert judgement is not None
    assert judgement.result is not None
    columns = ("old", "new", "all")
    rows = [(name, *(_cell(scores.get(c)) for c in columns)) for name, scores in result.rows.items()]
    print_table(
        ["mIoU %", *columns], rows, title="Two new classes on generated scenes", right=dict.fromkeys(columns, True)
    )
    typer.echo(f"Gate:        {judgement.result.headline}")
    typer.echo(f"Report:      {judgement.report}")
    typer.echo(f"Picture:     {result.picture}   (image, truth, base, fine-tuned, from tags)")
    typer.echo(f"Predictions: {result.predictions}")
    typer.echo(f"Seconds:     {', '.join(f'{k} {v:.0f}' for k, v in result.seconds.items())}")
    typer.echo("\nNext:")
    ref = judgement.candidate.ref
    typer.echo(f"  cilseg list --registry {root}/registry")
    typer.echo(f"  cilseg show {ref} --registry {root}/registry")
    typer.echo(f"  cilseg predict {root}/scenes/images -o out --model {ref} --registry {root}/registry")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
