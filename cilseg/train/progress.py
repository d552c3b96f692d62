"""A rich progress bar with losses and remaining time, for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cilseg.train.engine import OnTick, Tick

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def training_bar(console: Console, title: str) -> Iterator[OnTick]:
    """Show progress on ``console``; yield the callback that :func:`cilseg.train.engine.fit` calls."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    smoothed: dict[str, float] = {}
    with Progress(*columns, console=console, transient=False, disable=console.quiet) as bar:
        task = bar.add_task(title, total=None, losses="")

        def on_tick(tick: Tick) -> None:
            for key, value in tick.losses.items():
                smoothed[key] = 0.9 * smoothed.get(key, value) + 0.1 * value
            shown = " ".join(f"{k} {v:.3f}" for k, v in smoothed.items())
            bar.update(
                task,
                total=tick.iterations,
                completed=tick.iteration,
                losses=f"epoch {tick.epoch}/{tick.epochs}  {shown}",
            )

        yield on_tick
