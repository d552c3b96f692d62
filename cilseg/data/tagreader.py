"""The reader behind ``load_tag_list``: walks through a parsed tag list and collects everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from cilseg.classes import BACKGROUND, MAX_CLASSES, ClassSet, normalise_name
from cilseg.data.tags import NewClass, Point, TaggedImage, TagList, Untagged
from cilseg.errors import FaultCollector, did_you_mean
from cilseg_serve.images import IMAGE_SUFFIXES

SCHEMA = "cilseg.tags/1"
FORMS = (
    'A tag list is {"classes": [{"name": "cow"}], "images": [{"file": "a.jpg", "present": ["cow"]}]}, '
    'or short {"a.jpg": ["cow"]}.'
)
_FIELDS = ("schema", "image_root", "classes", "images", "untagged")
_IMAGE_FIELDS = ("file", "file_name", "present", "absent", "points", "scribble", "prior")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_SEPARATORS = re.compile(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)")


class JsonObject(dict[str, Any]):
    """A JSON object that remembers the keys given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.repeated = sorted(k for k, n in Counter(keys).items() if n > 1) if len(self) < len(keys) else []


class TagListReader:
    """Walks through one document; faults are collected, and one that repeats is told once with its first place."""

    def __init__(self, path: Path, class_set: ClassSet, faults: FaultCollector) -> None:
        self._path = path
        self._parent = class_set
        self._faults = faults
        self._known = set(class_set.foreground)
        self._by_fold = {_fold(name): name for name in class_set.foreground}
        self._open_vocabulary = False
        self._new: dict[str, NewClass] = {}
        self._bad_names: dict[str, str] = {}
        self._places: dict[str, list[str]] = {}
        self._missing: list[str] = []
        self._root = _absolute(path.parent)

    def read(self, document: Any, *, image_root: Path | str | None, untagged: str | None) -> TagList:
        rows: list[tuple[str, Any]] = []
        head: Mapping[str, Any] = {}
        if not isinstance(document, JsonObject):
            self._faults.add(f"the file holds {_show(document)} instead of an object. {FORMS}")
        elif self._is_short(document):
            self._open_vocabulary = True
            rows = [(f"image {_show(k)}", JsonObject([("file", k), ("present", v)])) for k, v in document.items()]
            for name in document.repeated:
                self._faults.add(f"image {_show(name)} is listed twice; put its tags into one entry")
        else:
            head = document
            rows = self._read_head(document)
        self._set_root(head.get("image_root"), image_root)
        mode = self._untagged(head.get("untagged"), untagged)
        images = [image for where, row in rows if (image := self._image(where, row)) is not None]
        if not rows and isinstance(document, JsonObject) and document.get("images", []) == []:
            self._faults.add(f"no images in it. {FORMS}")
        self._check_duplicates(images)
        if len(self._parent) + len(self._new) > MAX_CLASSES:
            self._faults.add(
                f"{len(self._new)} new classes on top of {len(self._parent)} make more than {MAX_CLASSES}, the limit"
            )
        for message, places in self._places.items():
            self._faults.add(f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {message}")
        for message in self._missing:
            self._faults.add(message)
        return TagList(self._path, tuple(self._new.values()), tuple(images), mode, "")

    @staticmethod
    def _is_short(document: JsonObject) -> bool:
        if not document or set(document) & set(_FIELDS):
            return False
        return any(PurePosixPath(key).suffix.lower() in IMAGE_SUFFIXES for key in document)

    def _read_head(self, document: JsonObject) -> list[tuple[str, Any]]:
        self._fields(document, _FIELDS, where="the list")
        if document.get("schema", SCHEMA) != SCHEMA:
            self._faults.add(f"schema is {_show(document['schema'])}, this version of cilseg reads {SCHEMA!r}")
        for i, entry in enumerate(self._items(document.get("classes", []), "classes")):
            self._new_class(f"classes[{i}]", entry)
        return [(f"images[{i}]", entry) for i, entry in enumerate(self._items(document.get("images", []), "images"))]

    def _fields(self, entry: JsonObject, known: Sequence[str], *, where: str) -> None:
        for key in entry:
            if key not in known:
                hint = did_you_mean(key, known)
                self._places.setdefault(f"unknown field {_show(key)}.{hint} Known: {', '.join(known)}", []).append(
                    where
                )
        for key in entry.repeated:
            self._faults.add(f"{where}: field {_show(key)} is given twice")

    def _items(self, value: Any, where: str) -> list[Any]:
        if isinstance(value, list):
            return value
        self._faults.add(f"{where} has to be a list [...], got {_show(value)}")
        return []

    def _new_class(self, where: str, entry: Any) -> None:
        if isinstance(entry, str):
            entry = JsonObject([("name", entry)])
        if not isinstance(entry, JsonObject) or not isinstance(entry.get("name"), str):
            self._faults.add(f'{where} has to be {{"name": "..."}}, got {_show(entry)}')
            return
        self._fields(entry, ("name", "color"), where=where)
        name, color = normalise_name(entry["name"]), entry.get("color")
        if color is not None and not (isinstance(color, str) and _COLOR.fullmatch(color)):
            self._faults.add(f"{where}: colour {_show(color)} of {_show(name)} is not of the form '#88aa22'")
            color = None
        other = self._by_fold.get(_fold(name))
        if problem := _unusable(name):
            self._faults.add(f"{where}: class name {_show(entry['name'])} {problem}")
        elif name in self._new:
            self._faults.add(f"{where}: class {name!r} is listed twice")
        elif name in self._known:
            self._faults.add(
                f"{where}: class {name!r} is in the parent already; leave it out of 'classes', its tags are used as "
                "tags of an old class"
            )
        elif other is not None:
            self._faults.add(f"{where}: class {_show(name)} exists as {other!r}; use that spelling")
        else:
            self._add_new(name, color)

    def _add_new(self, name: str, color: str | None) -> None:
        self._new[name] = NewClass(name, color)
        self._known.add(name)
        self._by_fold[_fold(name)] = name

    def _set_root(self, written: Any, argument: Path | str | None) -> None:
        if argument is not None:
            self._root = _absolute(Path(argument))
        elif written is not None:
            if not isinstance(written, str) or not written or _unprintable(written):
                self._faults.add(f"image_root has to be the path of a folder, got {_show(written)}")
                return
            self._root = _absolute(self._root / written)
        if not _is_directory(self._root):
            self._faults.add(f"image root {str(self._root)!r} is no folder; correct image_root, or give --image-root")

    def _untagged(self, written: Any, argument: str | None) -> Untagged:
        mode = written if argument is None else argument
        if mode is None:
            return "absent"
        if mode == "absent" or mode == "unknown":
            return "absent" if mode == "absent" else "unknown"
        hint = did_you_mean(mode, get_args(Untagged)) if isinstance(mode, str) else ""
        self._faults.add(f"untagged is {_show(mode)}, it has to be 'absent' or 'unknown'.{hint}")
        return "absent"

    def _image(self, where: str, entry: Any) -> TaggedImage | None:
        if not isinstance(entry, JsonObject):
            self._faults.add(f'{where} has to be {{"file": "...", "present": [...]}}, got {_show(entry)}')
            return None
        self._fields(entry, _IMAGE_FIELDS, where=where)
        given = [entry[key] for key in ("file", "file_name") if key in entry]
        if not given or any(g != given[0] for g in given):
            reason = f"'file' and 'file_name' differ: {_show(given)}" if given else "has no 'file'"
            self._faults.add(f"{where} {reason}; name one image")
        file = self._file(where, given[0], suffixes=IMAGE_SUFFIXES) if given else None
        present = self._classes(f"{where}.present", entry.get("present", []))
        absent = self._classes(f"{where}.absent", entry.get("absent", []))
        points = self._points(f"{where}.points", entry.get("points", []))
        present |= {p.name for p in points} - {BACKGROUND}
        for name in sorted(present & absent):
            self._faults.add(f"{where}: class {name!r} is both present and absent")
        extras = {
            key: self._file(f"{where}.{key}", entry[key], suffixes=(".png",)) if entry.get(key) is not None else None
            for key in ("scribble", "prior")
        }
        if file is None:
            return None
        return TaggedImage(file, present, absent, points, extras["scribble"], extras["prior"])

    def _classes(self, where: str, value: Any) -> frozenset[str]:
        if isinstance(value, str):
            self._faults.add(f"{where} has to be a list: write {json.dumps([value[:40]])}")
            return frozenset()
        return frozenset(n for raw in self._items(value, where) if (n := self._class(where, raw)) is not None)

    def _class(self, where: str, raw: Any) -> str | None:
        if not isinstance(raw, str):
            self._faults.add(f"{where}: a class is named by a string, got {_show(raw)}")
            return None
        name = normalise_name(raw)
        if name in self._known:
            return name
        if name in self._bad_names:
            self._places[self._bad_names[name]].append(where)
            return None
        other = self._by_fold.get(_fold(name))
        if problem := _unusable(name):
            message = f"class name {_show(raw)} {problem}"
        elif other is not None:
            message = f"class {_show(name)} exists as {other!r}; use that spelling"
        elif self._open_vocabulary:
            self._add_new(name, None)
            return name
        else:
            message = (
                f"class {_show(name)} is neither under 'classes' nor in the parent model."
                f"{did_you_mean(name, self._known)} Add it to 'classes' if it is new"
            )
        self._bad_names[name] = message
        self._places.setdefault(message, []).append(where)
        return None

    def _points(self, where: str, value: Any) -> tuple[Point, ...]:
        points = []
        for i, item in enumerate(self._items(value, where)):
            numbers = item[:2] if isinstance(item, list) and len(item) == 3 else []
            if not numbers or not all(_is_coordinate(n) for n in numbers):
                self._faults.add(f"{where}[{i}] has to be [x, y, class] with x and y in pixels, got {_show(item)}")
                continue
            name = BACKGROUND if item[2] == BACKGROUND else self._class(f"{where}[{i}]", item[2])
            if name is not None:
                points.append(Point(float(numbers[0]), float(numbers[1]), name))
        return tuple(points)

    def _file(self, where: str, raw: Any, *, suffixes: Collection[str]) -> Path | None:
        """Return the absolute path of a file below the image root, or add a fault."""
        if not isinstance(raw, str) or not raw.strip() or _unprintable(raw):
            self._faults.add(f"{where}: a file is named by a path below the image root, got {_show(raw)}")
            return None
        parts = PurePosixPath(raw.replace("\\", "/")).parts
        path = Path(raw) if Path(raw).is_absolute() else self._root / raw
        if ".." in parts or not path.is_relative_to(self._root) or (PureWindowsPath(raw).drive and os.name != "nt"):
            self._faults.add(
                f"{where}: {_show(raw)} leads out of the image root {self._root}; give a path below it (or another "
                "--image-root)"
            )
            return None
        if path.suffix.lower() not in suffixes:
            self._faults.add(f"{where}: {_show(raw)} does not end like an image ({', '.join(sorted(suffixes))})")
            return None
        size = _file_size(path)
        if not size:
            reason = "does not exist" if size is None else "is empty (0 bytes)"
            self._missing.append(f"{where}: file {_show(raw)} {reason} below {self._root}")
        return path

    def _check_duplicates(self, images: Sequence[TaggedImage]) -> None:
        seen: dict[Path, int] = {}
        for image in images:
            seen[image.file] = seen.get(image.file, 0) + 1
        for file, count in seen.items():
            if count > 1:
                name = file.relative_to(self._root).as_posix()
                self._faults.add(f"image {_show(name)} is listed {count} times; put its tags into one entry")


def _fold(name: str) -> str:
    """Return what two spellings of one class name have in common: no case, no blanks, ``_`` or ``-``."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return _SEPARATORS.sub("", plain) or plain


def _show(value: object) -> str:
    """Return a short picture of a JSON value for a message."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if isinstance(value, list):
        short = len(value) <= 4 and not any(isinstance(v, dict | list) for v in value)
        return f"[{', '.join(map(_show, value))}]" if short else f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unusable(name: str) -> str:
    """Return why ``name`` (normalised) cannot name a foreground class, or an empty string."""
    if not name:
        return "is empty"
    if name.casefold() == BACKGROUND:
        return "means 'no class' and is never tagged; leave it out"
    return "holds control characters" if _unprintable(name) else ""


def _unprintable(text: str) -> bool:
    """Whether ``text`` holds control characters, line breaks or halves of surrogate pairs."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def _is_coordinate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # name too long, or bytes that the file system cannot hold
        return False


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # as above
        return None
