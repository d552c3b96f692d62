"""Tag list files: reading the JSON forms whole, with every fault at once, and writing the normal form.

Normal form::

    {"schema": "cilseg.tags/1", "image_root": "images",
     "classes": [{"name": "cow"}, {"name": "sheep", "color": "#88aa22"}],
     "images": [{"file": "a.jpg", "present": ["cow"]}, {"file": "b.jpg", "present": [], "absent": ["cow"]}],
     "untagged": "absent"}

Short form: ``{"a.jpg": ["cow"], "b.jpg": []}``; every class that the parent lacks is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from cilseg.bundle import write_file_atomically
from cilseg.classes import ClassSet, normalise_name
from cilseg.data.source import Source
from cilseg.data.tagreader import FORMS, JsonObject, TagListReader
from cilseg.data.tagreader import SCHEMA as SCHEMA
from cilseg.data.tags import ClassSummary as ClassSummary
from cilseg.data.tags import NewClass as NewClass
from cilseg.data.tags import Point as Point
from cilseg.data.tags import TaggedImage as TaggedImage
from cilseg.data.tags import TagList as TagList
from cilseg.data.tags import Untagged as Untagged
from cilseg.data.tags import check_trainable as check_trainable
from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean

MAX_BYTES = 256 * 2**20
"""Larger tag lists are refused before they are parsed."""


def load_tag_list(
    path: Path | str, *, class_set: ClassSet, image_root: Path | str | None = None, untagged: str | None = None
) -> TagList:
    """Read and check a tag list against the classes of the parent model.

    Args:
        path: the JSON file, UTF-8.
        class_set: the parent's classes; a tag of one of them is a tag of an old class.
        image_root: folder of the images; default: ``image_root`` of the file, else the folder of the file.
        untagged: ``absent`` or ``unknown``, overrides the file; default ``absent``.

    Raises:
        NotFoundError: the file does not exist.
        InputError: not JSON, or anything wrong in it; every fault in one message.
    """
    path = Path(path)
    data = _read(path)
    document = _parse(path, data)
    faults = FaultCollector(f"Tag list {path}")
    reader = TagListReader(path, class_set, faults)
    tag_list = reader.read(document, image_root=image_root, untagged=untagged)
    faults.raise_if_any("Correct the list and try again; --dry-run checks it without training.")
    return dataclasses.replace(tag_list, sha256=hashlib.sha256(data).hexdigest())


def tags_from_source(
    source: Source, indices: Iterable[int], *, new_classes: Sequence[str | NewClass], old_classes: Collection[str] = ()
) -> TagList:
    """Make a tag list from the masks of a source, as a person who knows the images would.

    New classes are complete (unnamed = absent); of ``old_classes`` each image names what is present and what absent.

    Raises:
        InputError: classes that the source lacks, or a class both new and old; masks that cannot be read.
    """
    new = tuple(c if isinstance(c, NewClass) else NewClass(normalise_name(c)) for c in new_classes)
    names, old = frozenset(c.name for c in new), frozenset(old_classes)
    faults = FaultCollector(f"Tags from {source.root}")
    for name in sorted((names | old) - set(source.label_names.values())):
        faults.add(f"the source has no class {name!r}.{did_you_mean(name, source.label_names.values())}")
    for name in sorted(names & old):
        faults.add(f"class {name!r} is both new and old")
    faults.raise_if_any()
    images = []
    for index in indices:
        found = source.classes_in(index)
        images.append(TaggedImage(source.image_paths[index].absolute(), found & (names | old), old - found))
    return TagList(path=Path(), new_classes=new, images=tuple(images), untagged="absent", sha256="")


def write_tag_list(path: Path | str, tag_list: TagList, *, image_root: Path | str | None = None) -> TagList:
    """Write the normal form atomically and return the list with its new path and hash.

    Args:
        path: the file to write.
        tag_list: what to write.
        image_root: a folder above all images; default: the deepest one. Written relative to the file's folder.

    Raises:
        InputError: an image is not below ``image_root``.
    """
    path = Path(path)
    files = [p for image in tag_list.images for p in (image.file, image.scribble, image.prior) if p is not None]
    if image_root is None:
        root = Path(os.path.commonpath([f.parent for f in files])) if files else path.parent.absolute()
    else:
        root = Path(image_root).absolute()
    faults = FaultCollector(f"Tag list {path}")
    for file in files:
        if not file.is_relative_to(root):
            faults.add(f"{file} is not below the image root {root}")
    faults.raise_if_any("Give an image_root that is above all images.")
    document = {
        "schema": SCHEMA,
        "image_root": Path(os.path.relpath(root, path.parent.absolute())).as_posix(),
        "classes": [{"name": c.name} | ({"color": c.color} if c.color else {}) for c in tag_list.new_classes],
        "images": [_image_json(image, root) for image in tag_list.images],
        "untagged": tag_list.untagged,
    }
    data = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
    write_file_atomically(path, data)
    return dataclasses.replace(tag_list, path=path, sha256=hashlib.sha256(data).hexdigest())


def _image_json(image: TaggedImage, root: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"file": image.file.relative_to(root).as_posix(), "present": sorted(image.present)}
    if image.absent:
        row["absent"] = sorted(image.absent)
    if image.points:
        row["points"] = [[p.x_px, p.y_px, p.name] for p in image.points]
    for key, extra in (("scribble", image.scribble), ("prior", image.prior)):
        if extra is not None:
            row[key] = extra.relative_to(root).as_posix()
    return row


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"Tag list {path} has {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read.")
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"Tag list {path} does not exist. {FORMS}") from None
    except OSError as exc:
        raise InputError(f"Tag list {path} cannot be read: {exc.strerror}. Give the path of a JSON file.") from exc


def _parse(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=JsonObject)
    except json.JSONDecodeError as exc:
        what = "is empty" if not data.strip() else f"is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}"
        raise InputError(f"Tag list {path} {what}. {FORMS}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"Tag list {path} is not UTF-8 text: {exc.reason} at byte {exc.start}.") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"Tag list {path} is no sensible JSON: {exc}. {FORMS}") from exc
