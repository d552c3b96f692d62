"""What every verb shares: option types, consoles, and how data reaches stdout."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cilseg.registry import Registry

OnBytes = Callable[[str, int, int], None]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no log lines; only the result.")]
RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry", envvar="CILSEG_REGISTRY", help="Folder or postgresql://... (default: ./cilseg-registry)."
    ),
]


def stderr_console(*, quiet: bool = False) -> Console:
    """Console for logs and progress (stderr); prints nothing when ``quiet``."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


def progress_console(*, quiet: bool = False) -> Console:
    """Console for progress bars: stderr where that is a terminal, else one that prints nothing."""
    console = stderr_console(quiet=quiet)
    console.quiet = quiet or not console.is_terminal
    return console


def log_to_stderr(*, quiet: bool = False) -> None:
    """Show what the library logs, from INFO on (errors alone when ``quiet``), as plain lines on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("cilseg")
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


@contextmanager
def resumable(how: str = " with --resume") -> Iterator[None]:
    """Say, where a training run is interrupted, how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"repeat the command{how} to go on from the last checkpoint") from None


def stdout_console() -> Console:
    """Console for data (stdout)."""
    from rich.console import Console

    # Piped output is read by programs and logs: no wrapping at the 80 columns that rich assumes there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def print_json(payload: Any) -> None:
    """Print ``payload`` as indented JSON on stdout."""
    typer.echo(json.dumps(payload, indent=2, ensure_ascii=False, default=str))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    right: Mapping[str, bool] | None = None,
) -> None:
    """Print a plain table on stdout; columns named in ``right`` are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        typer.echo(title)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in columns:
        table.add_column(Text(name), justify="right" if right and right.get(name) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    stdout_console().print(table)


def registry_hint(url: str | None) -> str:
    """Return the option that a suggested command needs where the registry was named on the command line."""
    if url is None or url == os.environ.get("CILSEG_REGISTRY"):
        return ""
    from cilseg.registry.address import without_password

    return f" --registry {shlex.quote(without_password(url))}"


def open_registry(url: str | None, *, store: str | None = None, progress: OnBytes | None = None) -> Registry:
    """Open the registry named on the command line, by ``CILSEG_REGISTRY``, or the default."""
    from cilseg.registry import Registry

    return Registry.open(url, store=store, progress=progress)


@contextmanager
def transfer_bar(*, quiet: bool = False) -> Iterator[OnBytes]:
    """Show a progress bar of bytes on stderr for every file that is copied."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=progress_console(quiet=quiet)) as bar:
        tasks: dict[str, Any] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield update


def size_text(size_bytes: int | None) -> str:
    """Return a size for people: ``1.5 GB``; ``-`` where it is not known."""
    if size_bytes is None:
        return "-"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= step:
            return f"{size_bytes / step:.1f} {unit}"
    return f"{size_bytes} B"
