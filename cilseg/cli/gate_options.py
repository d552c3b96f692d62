"""Options of the gate that ``update`` and ``validate`` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cilseg.evaluate.policy import GatePolicy

PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", metavar="NAME|FILE", help="Gate policy: default, strict, or a YAML file."),
]
JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdict as JUnit XML, one case per class.")
]


class OnRegression(StrEnum):
    """What happens to a candidate that is not promoted."""

    keep = "keep"
    fuse = "fuse"


OnRegressionOption = Annotated[
    OnRegression,
    typer.Option("--on-regression", help="fuse: mix a candidate that is not promoted with its parent, judge again."),
]


def read_policy(policy: str) -> GatePolicy:
    """Return the policy of that name or file.

    Raises:
        NotFoundError: no such policy.
        InputError: a file that is no policy; every fault at once.
    """
    from cilseg.config import configs_directory
    from cilseg.evaluate.policy import load_policy

    return load_policy(policy, configs=configs_directory())


def check_writable(junit: Path | None) -> None:
    """Refuse, before hours of work, a report that could not be written.

    Raises:
        NotFoundError: its folder does not exist.
    """
    from cilseg.errors import NotFoundError

    if junit is not None and not junit.absolute().parent.is_dir():
        raise NotFoundError(f"--junit {junit}: the folder {junit.absolute().parent} does not exist. Make it first.")
