"""The class set of a model: ordered, append-only ids, names, colours, the step each class came in.

Index 0 is background; at most 255 entries; 255 is void in masks everywhere.
"""

from __future__ import annotations

import colorsys
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import InputError, did_you_mean

BACKGROUND = "background"
VOID_ID = 255
UNLABELLED_ID = 254
"""A pixel that nobody annotated, in masks made of points or scribbles; there a class set has at most 254 entries."""
MAX_CLASSES = 255
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


def normalise_name(name: str) -> str:
    """Return ``name`` in Unicode NFC without surrounding blanks; case is kept."""
    return unicodedata.normalize("NFC", name).strip()


def default_color(index: int) -> str:
    """Return a colour well apart from its neighbours: golden-angle hues, black for background."""
    if index == 0:
        return "#000000"
    hue = (0.07 + 0.61803398875 * (index - 1)) % 1.0
    lightness = (0.55, 0.42, 0.68)[((index - 1) // 5) % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def default_palette(n: int) -> npt.NDArray[np.uint8]:
    """Return the default colours of ids 0 to ``n - 1``, (n, 3) uint8 RGB."""
    return np.array([list(bytes.fromhex(default_color(k)[1:])) for k in range(n)], dtype=np.uint8)


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, its colour ``#rrggbb``, and the step (0 = base) that it came in."""

    name: str
    color: str
    step: int

    def __post_init__(self) -> None:
        if not self.name or self.name != normalise_name(self.name):
            raise InputError(f"Class name {self.name!r} is empty or not normalised; use normalise_name() first.")
        if not _COLOR.fullmatch(self.color):
            raise InputError(f"Class {self.name!r}: colour {self.color!r} is not of the form #rrggbb.")


@dataclass(frozen=True)
class ClassSet:
    """Ordered classes of a model; the position is the id in masks and the channel of the logits.

    Raises:
        InputError: first entry not background, duplicate names (also by case alone), more than 255 entries, or
            steps that go backwards.
    """

    entries: tuple[ClassInfo, ...]

    def __post_init__(self) -> None:
        if not self.entries or self.entries[0].name != BACKGROUND:
            raise InputError(f"A class set starts with {BACKGROUND!r}, got {[e.name for e in self.entries[:1]]}.")
        if len(self.entries) > MAX_CLASSES:
            raise InputError(f"A class set holds at most {MAX_CLASSES} entries, got {len(self.entries)}.")
        seen: dict[str, str] = {}
        for entry in self.entries:
            fold = entry.name.casefold()
            if fold in seen:
                raise InputError(f"Class {entry.name!r} is there twice (as {seen[fold]!r}).")
            seen[fold] = entry.name
        steps = [e.step for e in self.entries]
        if steps != sorted(steps):
            raise InputError(f"Steps of a class set never go backwards, got {steps}.")

    @classmethod
    def base(cls, names: Iterable[str], colors: Sequence[str | None] | None = None) -> ClassSet:
        """Return the class set of a base model: background, then ``names`` in order, all of step 0."""
        wanted = [normalise_name(n) for n in names]
        return cls((ClassInfo(BACKGROUND, default_color(0), 0),)).extend(wanted, colors, step=0)

    def extend(self, names: Sequence[str], colors: Sequence[str | None] | None = None, *, step: int) -> ClassSet:
        """Return a new class set with ``names`` appended; ids of existing classes never change."""
        given = list(colors) if colors is not None else [None] * len(names)
        start = len(self.entries)
        added = tuple(
            ClassInfo(normalise_name(name), color or default_color(start + offset), step)
            for offset, (name, color) in enumerate(zip(names, given, strict=True))
        )
        return ClassSet(self.entries + added)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(e.name for e in self.entries)

    @property
    def foreground(self) -> tuple[str, ...]:
        """All names but background, in id order."""
        return self.names[1:]

    @property
    def last_step(self) -> int:
        return self.entries[-1].step

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of channels that each step brought, background counted in step 0."""
        steps = [e.step for e in self.entries]
        return tuple(steps.count(s) for s in range(self.last_step + 1))

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours as ``(len(self), 3)`` uint8 RGB."""
        return np.array([[int(e.color[i : i + 2], 16) for i in (1, 3, 5)] for e in self.entries], dtype=np.uint8)

    def id_of(self, name: str) -> int:
        """Return the id of ``name``.

        Raises:
            InputError: the class does not exist; the message names the closest one.
        """
        wanted = normalise_name(name)
        if wanted not in self.names:
            raise InputError(
                f"Unknown class {name!r}.{did_you_mean(wanted, self.names)} Known: {', '.join(self.names)}."
            )
        return self.names.index(wanted)

    def of_step(self, step: int) -> tuple[str, ...]:
        """Names that came in ``step``, background left out."""
        return tuple(e.name for e in self.entries if e.step == step and e.name != BACKGROUND)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"id": i, "name": e.name, "color": e.color, "step": e.step} for i, e in enumerate(self.entries)]

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]]) -> ClassSet:
        return cls(tuple(ClassInfo(str(r["name"]), str(r["color"]), int(r["step"])) for r in rows))
