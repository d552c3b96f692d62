"""Entry point of ``cilseg``: registers the verbs, turns errors into messages and exit codes."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable

import typer

from cilseg import __version__
from cilseg.errors import CilsegError

# verb -> module in cilseg.cli; each module has one function `command`.
VERBS = {
    "demo": "demo",
    "train": "train",
    "update": "update",
    "validate": "validate",
    "methods": "methods",
    "promote": "promote",
    "rollback": "rollback",
    "list": "list_",
    "show": "show",
    "pseudo-labels": "pseudo_labels",
    "log": "log",
    "diff": "diff",
    "history": "history",
    "push": "push",
    "pull": "pull",
    "gc": "gc",
    "fsck": "fsck",
    "migrate": "migrate",
    "export": "export",
    "predict": "predict",
    "serve": "serve",
    "drift": "drift",
    "scenes": "scenes",
    "doctor": "doctor",
}
# group -> module in cilseg.cli; each has a typer `app` with sub-commands.
GROUPS = {"bench": "bench"}

# package -> extra of pyproject.toml that brings it
_EXTRA_OF = {
    **dict.fromkeys(("torch", "torchvision", "timm", "lightning_fabric", "jinja2"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart"), "serve"),
    "psycopg": "postgres",
    "fsspec": "s3",
    "s3fs": "s3",
    "rasterio": "geo",
    "ray": "ray",
}

app = typer.Typer(
    name="cilseg",
    help="Teach a deployed segmentation model new classes from image tags, judge the result, ship it.",
    epilog="Start with:  cilseg demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cilseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Teach a deployed segmentation model new classes from image tags, judge the result, ship it."""


class _StoppedError(Exception):
    """Ctrl-C inside a command; typer would report it in its own way, which changed between versions."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run_command(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as stop:
            raise _StoppedError(f"interrupted{f': {stop}' if str(stop) else ''}") from None

    # Typer keeps line breaks of docstrings; the terminal shall break the lines of a paragraph, those of examples stay.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    run_command.__doc__ = "\n\n".join(p if "\n " in f"\n{p}" else p.replace("\n", " ") for p in paragraphs)
    return run_command


for _verb, _module in VERBS.items():
    app.command(_verb)(_interruptible(importlib.import_module(f"cilseg.cli.{_module}").command))
for _group, _module in GROUPS.items():
    _sub = importlib.import_module(f"cilseg.cli.{_module}").app
    for _command in _sub.registered_commands:
        _command.callback = _interruptible(_command.callback)
    app.add_typer(_sub, name=_group)


def run() -> None:
    """Run the command line; the only place that exits."""
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF:
            raise
        extra = _EXTRA_OF[package]
        _fail(f"This verb needs {package}, which is not installed: pip install 'cilseg[{extra}]'.", 1)
    except CilsegError as error:
        _fail(str(error), error.exit_code)
    except (_StoppedError, KeyboardInterrupt) as stop:
        _fail(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}. "
            "Free space or fix the permissions and repeat the command; nothing half-written was kept.",
            1,
        )


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
