"""Label names of mask values, and the mapping of masks to the channels of a class set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from cilseg.classes import BACKGROUND, VOID_ID, ClassSet, normalise_name
from cilseg.errors import FaultCollector, InputError, did_you_mean

Mask = npt.NDArray[np.uint8]
LABELS_FILE = "labels.txt"

VOC_LABELS: Mapping[int, str] = MappingProxyType(
    dict(
        enumerate(
            (
                *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
                *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
                "tvmonitor",
            )
        )
    )
)
"""Mask values of PASCAL VOC 2012."""


def map_mask(
    mask: Mask,
    label_names: Mapping[int, str],
    class_set: ClassSet,
    *,
    visible: Collection[str],
    others: Literal["background", "void"] = "background",
    void_as_background: bool = False,
) -> Mask:
    """Translate a mask from the values of its source to the channel ids of ``class_set``.

    Args:
        mask: ``(H, W)`` uint8 in the values of ``label_names``, 255 void.
        label_names: mask value -> class name.
        class_set: the classes of the model; the position is the channel.
        visible: the foreground classes that the mask may show.
        others: what becomes of every other class, 0 or 255.
        void_as_background: turn 255 into 0, as the released WILSON and MiB code does in training.

    Returns:
        ``(H, W)`` uint8 of channel ids.

    Raises:
        InputError: a visible class that the class set lacks, a label that differs from a class by case alone, or mask
            values without a name.
    """
    table = np.full(256, VOID_ID if others == "void" else 0, dtype=np.uint8)
    shown = {normalise_name(n) for n in visible} - {BACKGROUND}
    for name in sorted(shown - set(class_set.names)):
        raise InputError(f"Class {name!r} is not in the class set.{did_you_mean(name, class_set.names)}")
    folded = {n.casefold(): n for n in class_set.names}
    for value, name in label_names.items():
        known = folded.get(name.casefold(), name)
        if known != name:
            raise InputError(f"Mask value {value} is called {name!r}, but the class is {known!r}. Use one spelling.")
        if name == BACKGROUND:
            table[value] = 0
        elif name in shown:
            table[value] = class_set.id_of(name)
    table[VOID_ID] = 0 if void_as_background else VOID_ID
    unknown = [v for v in values_of(mask) if v not in label_names and v != VOID_ID]
    if unknown:
        raise InputError(f"The mask holds the values {unknown}, which have no name. Known: {ranges(label_names)}.")
    mapped: Mask = table[mask]
    return mapped


def read_labels(path: Path) -> dict[int, str]:
    """Read a labels file: line ``i`` (from 0) names mask value ``i``; line 0 is background.

    Raises:
        InputError: missing or empty file, blank or repeated names, another first line; every fault in one message.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(
            f"Labels file {path} cannot be read: {exc}. Write one class name per line, UTF-8, {BACKGROUND!r} first."
        ) from exc
    names = [normalise_name(line) for line in text.rstrip().splitlines()]
    return check_labels(dict(enumerate(names)), str(path))


def check_labels(names: Mapping[int, str], where: str) -> dict[int, str]:
    """Return ``names`` with background at 0.

    Raises:
        InputError: values outside 0-254, empty or repeated names, another name for 0; every fault in one message.
    """
    faults = FaultCollector(f"Label names ({where})")
    seen: dict[str, int] = {}
    for value, name in names.items():
        fold = name.casefold()
        if not 0 <= value < VOID_ID:
            faults.add(f"value {value} ({name!r}) is outside 0-{VOID_ID - 1}; {VOID_ID} is void")
        if not name:
            faults.add(f"value {value} has an empty name")
        elif fold in seen and fold != BACKGROUND:
            faults.add(f"{name!r} names value {value} and value {seen[fold]}")
        seen.setdefault(fold, value)
    if names.get(0, BACKGROUND) != BACKGROUND:
        faults.add(f"value 0 is called {names[0]!r}; it has to be {BACKGROUND!r}")
    if not names:
        faults.add("no names at all")
    faults.raise_if_any(f"One name per mask value, {BACKGROUND!r} first.")
    return {0: BACKGROUND, **names}


def values_of(mask: Mask) -> list[int]:
    """Return the values that occur in a mask, ascending."""
    return [int(v) for v in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))]


def ranges(values: Iterable[int]) -> str:
    """Return sorted integers as ``0-5, 9``."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
