"""Tag lists as requests bring them: every path in them is checked to stay below one allowed folder.

What a list means (classes, states, images that can be decoded) is checked by ``cilseg update`` before it trains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cilseg.errors import CilsegError, FaultCollector, InputError
from cilseg_serve.images import IMAGE_SUFFIXES
from cilseg_serve.server.errors import BadRequestError
from cilseg_serve.server.roots import Roots, below_any, inside

SCHEMA = "cilseg.tags/1"
_FIELDS = frozenset({"schema", "image_root", "classes", "images", "untagged"})
_PATHS = ("file", "file_name", "scribble", "prior")
_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_list_name(name: str) -> str:
    """Return ``name`` if it may name a tag list.

    Raises:
        BadRequestError: it may not.
    """
    if not _LIST_NAME.fullmatch(name):
        raise BadRequestError(f"Tag list name {name[:100]!r}: use up to 64 letters, digits, '.', '_' and '-'.")
    return name


def parse_document(data: bytes | str) -> dict[str, Any]:
    """Return a tag list (normal or short form) as the object that it is.

    Raises:
        BadRequestError: no JSON object.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The tag list is no JSON ({error}).") from None
    if not isinstance(document, dict) or not document:
        raise BadRequestError('A tag list is {"classes": [{"name": "cow"}], "images": [...]} or {"a.jpg": ["cow"]}.')
    return document


def image_root_of(document: dict[str, Any], roots: Roots, *, default: Path) -> Path:
    """Return the folder of the images: ``image_root`` of the list (``NAME/...`` or absolute), else ``default``.

    Raises:
        ForbiddenError: it is not below an allowed folder.
        BadRequestError: it is no text.
    """
    named = document.get("image_root") if not is_short(document) else None
    if named is None:
        return default
    if not isinstance(named, str):
        raise BadRequestError(f"image_root is a text, got {type(named).__name__}.")
    return below_any(roots, named)


def check_paths(document: dict[str, Any], root: Path) -> int:
    """Check that every file that the list names lies below ``root``; return the number of images.

    Raises:
        InputError: paths that lead elsewhere, or files that are not there; all of them.
    """
    faults = FaultCollector("Tag list")
    count = 0
    for where, path, is_image in _paths(document):
        count += is_image
        try:
            if not isinstance(path, str):
                raise BadRequestError(f"a file is a text, got {type(path).__name__}.")
            inside(root, path)
        except CilsegError as error:
            faults.add(f"{where}: {error}")
    if not count:
        faults.add("no images in it")
    faults.raise_if_any("Give paths below image_root.", error=InputError)
    return count


def is_short(document: dict[str, Any]) -> bool:
    """Return whether this is the short form, file to tags."""
    return not set(document) & _FIELDS and any(Path(key).suffix.lower() in IMAGE_SUFFIXES for key in document)


def tagged_files(document: dict[str, Any]) -> set[str]:
    """Return the images that the list names, as it names them."""
    return {path for _, path, is_image in _paths(document) if is_image and isinstance(path, str)}


def _paths(document: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    if is_short(document):
        yield from ((f"image {key[:100]!r}", key, True) for key in document)
        return
    images = document.get("images")
    if not isinstance(images, list):
        return
    for number, row in enumerate(images):
        if not isinstance(row, dict):
            yield f"images[{number}]", row, True
            continue
        for key in _PATHS:
            if row.get(key) is not None:
                yield f"images[{number}].{key}", row[key], key in ("file", "file_name")
