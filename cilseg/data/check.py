"""Reading everything once before it is used for hours: every unreadable image and mask, in one message."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np

from cilseg.classes import ClassSet
from cilseg.data.labels import map_mask
from cilseg.data.source import Source
from cilseg.errors import CilsegError, FaultCollector, InputError
from cilseg_serve.images import read_image

_MAX_THREADS = 8  # decoders release the interpreter lock
_ADVICE = "Replace or correct these files, or take them out of the list, then try again."


def check_images(paths: Sequence[Path], *, what: str) -> None:
    """Decode every image whole.

    Args:
        paths: image files.
        what: how the message calls them, e.g. ``Tag list new.json``.

    Raises:
        InputError: images that are missing, empty, truncated or no images; all of them are named.
    """
    _raise(_faults(lambda path: read_image(path), paths), what)


def check_source(source: Source, *, class_set: ClassSet, needed: Collection[str] = ()) -> frozenset[str]:
    """Decode every image and mask of a source; each mask has to fit its image and the label names.

    Returns the foreground classes in the masks.

    Args:
        source: the images and masks.
        class_set: the classes of the model, which the labels must not spell in another way.
        needed: foreground classes of which at least one pixel must be somewhere in the masks.

    Raises:
        InputError: another spelling of a class; files that cannot be used, or classes without a pixel, all of them.
    """
    map_mask(np.zeros((1, 1), np.uint8), source.label_names, class_set, visible=())
    what = f"Data folder {source.root} (split {source.split!r})"
    rows = range(len(source))
    images = _faults(source.image, rows)
    # The size of a mask is compared with its image, so a damaged image would be told twice.
    masks = _faults(source.mask, list(compress(rows, (not fault for fault in images))))
    _raise([*images, *masks], what)
    found = frozenset[str]().union(*(source.classes_in(row) for row in rows))
    faults = FaultCollector(what)
    for name in needed:
        if name not in found:
            faults.add(f"class {name!r} is in none of the {len(source)} masks, so it cannot be learned")
    faults.raise_if_any(f"Classes in the masks: {', '.join(sorted(found)) or 'none'}. Check --classes and --split.")
    return found


def _faults(read: Callable[..., object], items: Iterable[object]) -> list[str]:
    """Return the message of each item that cannot be read, and an empty string for the others, in order."""

    def message(item: object) -> str:
        try:
            read(item)
        except CilsegError as exc:
            return str(exc)
        return ""

    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        return list(pool.map(message, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _raise(messages: Iterable[str], what: str) -> None:
    faults = FaultCollector(what)
    for message in filter(None, messages):
        faults.add(message)
    faults.raise_if_any(_ADVICE, error=InputError)
