"""Allowed roots: the only folders in which a request may name files. Symbolic links are resolved before the check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cilseg.errors import FaultCollector, NotFoundError, did_you_mean
from cilseg_serve.server.errors import BadRequestError, ForbiddenError

Roots = Sequence[tuple[str, Path]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_roots(texts: Iterable[str]) -> tuple[tuple[str, Path], ...]:
    """Read ``NAME=DIR`` or ``DIR``, whose name is that of the folder.

    Raises:
        InputError: folders that do not exist, names that are not allowed or taken twice; all of them.
    """
    faults = FaultCollector("--images")
    roots: dict[str, Path] = {}
    for text in texts:
        head, mark, tail = text.partition("=")
        named = bool(mark) and _NAME.fullmatch(head) is not None
        folder = Path(tail if named else text).expanduser().absolute()
        name = head if named else folder.name
        if not folder.is_dir():
            faults.add(f"{folder} is no folder")
        elif not _NAME.fullmatch(name):
            faults.add(f"name {name!r}: use letters, digits, '.', '_' and '-': NAME=DIR")
        elif name in roots:
            faults.add(f"name {name!r} is there twice: NAME=DIR gives another")
        roots[name] = folder.resolve()
    faults.raise_if_any()
    return tuple(roots.items())


def root_named(roots: Roots, name: str) -> Path:
    """Return the folder of a root.

    Raises:
        NotFoundError: there is none of that name.
    """
    known = dict(roots)
    if name not in known:
        raise NotFoundError(
            f"There is no image folder {name[:100]!r}.{did_you_mean(name[:100], known)} "
            f"There are: {', '.join(known) or 'none; start the server with --images DIR'}."
        )
    return known[name]


def inside(root: Path, relative: str) -> Path:
    """Return the file that ``relative`` names below ``root``, links resolved.

    Raises:
        BadRequestError: no usable path.
        ForbiddenError: it leads out of ``root``.
        NotFoundError: there is no such file.
    """
    if "\0" in relative or "\\" in relative or len(relative) > 1000 or not relative:
        raise BadRequestError(f"{relative[:100]!r} is no path of a file.")
    try:
        path = (root / relative).resolve()
        if Path(relative).is_absolute() or not path.is_relative_to(root):
            raise ForbiddenError(f"{relative[:100]!r} leads out of the folder. Give a path below it.")
        if not path.is_file():
            raise NotFoundError(f"There is no file {relative[:100]!r} in this folder.")
    except (OSError, RuntimeError, ValueError):
        raise BadRequestError(f"{relative[:100]!r} is no path of a file.") from None
    return path


def below_any(roots: Roots, path: str) -> Path:
    """Return the folder or file ``path`` (absolute, or ``NAME/...``), which lies below an allowed root.

    Raises:
        BadRequestError: no usable path.
        ForbiddenError: it lies elsewhere.
    """
    if "\0" in path or len(path) > 2000 or not path:
        raise BadRequestError(f"{path[:100]!r} is no path.")
    name, _, rest = path.partition("/")
    known = dict(roots)
    start = Path(path) if path.startswith("/") else known[name] / rest if name in known else None
    try:
        found = None if start is None else start.resolve()
    except (OSError, RuntimeError, ValueError):
        found = None
    if found is None or not any(found.is_relative_to(root) for _, root in roots):
        raise ForbiddenError(
            f"{path[:200]!r} is not below an allowed folder ({', '.join(known) or 'there is none'}). Start the server "
            "with --images NAME=DIR, and give NAME/FOLDER."
        )
    return found
