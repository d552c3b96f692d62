"""Annotated images on disk: the VOC layout, the plain folder layout, and the mapping of mask values to channels.

A source is opened once; everything that is wrong with it is reported at that moment, together. Masks are checked when
they are read.

Layouts::

    voc                                      folder
    JPEGImages/ID.jpg                        images/ID.*           any image extension
    SegmentationClassAug/ID.png              masks/ID.png
    SegmentationClass/ID.png                 SPLIT.txt             (or splits/SPLIT.txt)
    ImageSets/Segmentation/SPLIT.txt         labels.txt            line i names mask value i
    (or SPLIT.txt, splits/SPLIT.txt)

A line of a list file is an id, or an image and a mask path from the root on, separated by blanks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from cilseg.classes import BACKGROUND, VOID_ID, normalise_name
from cilseg.data.labels import LABELS_FILE, Mask, check_labels, ranges, read_labels, values_of
from cilseg.data.labels import VOC_LABELS as VOC_LABELS
from cilseg.data.labels import map_mask as map_mask
from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean
from cilseg_serve.images import IMAGE_SUFFIXES, read_image, read_mask

Layout = Literal["voc", "folder"]

_IMAGE_DIRECTORIES: Mapping[Layout, str] = {"voc": "JPEGImages", "folder": "images"}
_MASK_DIRECTORIES: Mapping[Layout, tuple[str, ...]] = {
    "voc": ("SegmentationClassAug", "SegmentationClass"),
    "folder": ("masks",),
}
_LIST_DIRECTORIES: Mapping[Layout, tuple[str, ...]] = {
    "voc": ("ImageSets/Segmentation", ".", "splits"),
    "folder": (".", "splits"),
}
_SIDEWAYS = (5, 6, 7, 8)
_PAIR_LINE = re.compile(r"(?P<image>\S+\.\w+)\s+(?P<mask>\S+\.png)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Images of one split with their masks, in the order of the list file; made by :func:`open_source`.

    ``label_names`` maps mask values to class names (0 is background); masks keep their own values, 255 is void.
    """

    root: Path
    split: str
    layout: Layout
    ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    mask_paths: tuple[Path | None, ...]
    label_names: Mapping[int, str]
    _classes: dict[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return image ``index`` as ``(H, W, 3)`` uint8 RGB, upright.

        Raises:
            InputError: the file is missing, empty or damaged.
        """
        return read_image(self.image_paths[index])

    def mask(self, index: int) -> Mask:
        """Return the mask of image ``index`` as ``(H, W)`` uint8 in the values of this source, 255 void.

        Raises:
            InputError: no mask, a damaged one, one of another size than the image, or values that ``label_names``
                does not know; the message names the file and the values.
        """
        path = self.mask_paths[index]
        if path is None:
            raise InputError(f"Image {self.ids[index]!r} of {self.root} has no mask. Add one, or leave the image out.")
        mask = read_mask(path)
        size_hw = _image_size_hw(self.image_paths[index])
        if mask.shape != size_hw:
            raise InputError(
                f"Mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {self.image_paths[index].name} is "
                f"{size_hw[1]}x{size_hw[0]}. Draw the mask at the size of the upright image, or resize it with "
                "nearest-neighbour."
            )
        values = values_of(mask)
        unknown = [v for v in values if v not in self.label_names and v != VOID_ID]
        if unknown:
            raise InputError(
                f"Mask {path} holds the values {unknown}, which no class has (known: "
                f"{ranges(self.label_names)} and {VOID_ID} for void). Correct the mask, or give the label names "
                f"of these values (label_names, or line {unknown[0] + 1} of {LABELS_FILE})."
            )
        self._classes[self.ids[index]] = frozenset(self.label_names[v] for v in values if v != VOID_ID) - {BACKGROUND}
        return mask

    def classes_in(self, index: int) -> frozenset[str]:
        """Return the foreground classes with at least one pixel in mask ``index``; remembered after the first call.

        Raises:
            InputError: as :meth:`mask`.
        """
        name = self.ids[index]
        if name not in self._classes:
            self.mask(index)
        return self._classes[name]

    def tags(self) -> tuple[frozenset[str], ...]:
        """Return :meth:`classes_in` of every image, as the protocols want it."""
        return tuple(self.classes_in(i) for i in range(len(self)))

    def subset(self, ids: Iterable[str]) -> Source:
        """Return a source with only ``ids``, in the order given.

        Raises:
            InputError: ids that this source lacks, or an id named twice; all are listed.
        """
        wanted = list(ids)
        position = {name: i for i, name in enumerate(self.ids)}
        faults = FaultCollector(f"Subset of {self.root} ({self.split})")
        for name, count in Counter(wanted).items():
            if name not in position:
                faults.add(f"id {name!r} is not among its {len(self)} images")
            if count > 1:
                faults.add(f"id {name!r} is named {count} times")
        faults.raise_if_any(f"Name ids of the split {self.split!r}, each once.")
        rows = [position[name] for name in wanted]
        return dataclasses.replace(
            self,
            ids=tuple(wanted),
            image_paths=tuple(self.image_paths[i] for i in rows),
            mask_paths=tuple(self.mask_paths[i] for i in rows),
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Return what identifies the data in a manifest, without paths.

        ``ids_sha256`` covers the ids in order, ``images_sha256`` and ``masks_sha256`` ids and file sizes.
        """
        return {
            "split": self.split,
            "layout": self.layout,
            "images": len(self),
            "ids_sha256": _sha256("\n".join(self.ids)),
            "images_sha256": _sha256(_sizes(self.ids, self.image_paths)),
            "masks_sha256": _sha256(_sizes(self.ids, self.mask_paths)),
        }


def open_source(
    root: Path | str,
    *,
    split: str,
    layout: Literal["auto", "voc", "folder"] = "auto",
    label_names: Mapping[int, str] | Path | str | None = None,
    require_masks: bool = True,
) -> Source:
    """Open one split of a data folder and check that everything it lists is there.

    ``label_names`` is a mapping of mask values to names, ``"voc"``, or the path of a labels file; without it,
    ``labels.txt`` in ``root`` is read, else the VOC layout takes the VOC names.

    Raises:
        NotFoundError: ``root`` is no folder.
        InputError: list file missing or empty, ids twice, ids without image or mask, unusable label names; every
            fault in one message.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotFoundError(f"Data folder {root} does not exist. Give the folder that holds images/ or JPEGImages/.")
    kind = _detect_layout(root) if layout == "auto" else layout
    if kind not in _IMAGE_DIRECTORIES:
        raise InputError(f"Unknown layout {kind!r}. Use 'auto', 'voc' or 'folder'.")
    faults = FaultCollector(f"Data folder {root} (layout {kind}, split {split!r})")
    names = _resolve_labels(root, kind, label_names, faults)
    lines = _read_list(root, kind, split, faults)
    rows = _locate(root, kind, lines, faults=faults, require_masks=require_masks)
    faults.raise_if_any("Correct the list file or add the missing files, then try again.")
    return Source(
        root=root,
        split=split,
        layout=kind,
        ids=tuple(r[0] for r in rows),
        image_paths=tuple(r[1] for r in rows),
        mask_paths=tuple(r[2] for r in rows),
        label_names=names,
    )


def _resolve_labels(
    root: Path, layout: Layout, given: Mapping[int, str] | Path | str | None, faults: FaultCollector
) -> dict[int, str]:
    try:
        if isinstance(given, Mapping):
            return check_labels({int(k): normalise_name(v) for k, v in given.items()}, "argument label_names")
        if given == "voc" or (given is None and layout == "voc" and not (root / LABELS_FILE).is_file()):
            return dict(VOC_LABELS)
        if given is not None:
            return read_labels(Path(given))
        if (root / LABELS_FILE).is_file():
            return read_labels(root / LABELS_FILE)
    except InputError as exc:
        faults.add(str(exc).replace("\n", "\n    "))
        return {}
    faults.add(
        f"no label names: {root / LABELS_FILE} does not exist. Write it (line i names mask value i, line 0 "
        f"{BACKGROUND!r}), or give label_names: 'voc', the path of a labels file, or a mapping of values to names"
    )
    return {}


def _detect_layout(root: Path) -> Layout:
    for layout, directory in _IMAGE_DIRECTORIES.items():
        if (root / directory).is_dir():
            return layout
    found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folder"
    raise InputError(
        f"{root} holds neither images/ (folder layout) nor JPEGImages/ (VOC layout), but {found}. "
        "Give the folder above the images."
    )


def _read_list(root: Path, layout: Layout, split: str, faults: FaultCollector) -> list[str]:
    directories = [root / d for d in _LIST_DIRECTORIES[layout]]
    path = next((d / f"{split}.txt" for d in directories if (d / f"{split}.txt").is_file()), None)
    if path is None:
        skip = {LABELS_FILE, "README.txt"}
        known = sorted({p.stem for d in directories if d.is_dir() for p in d.glob("*.txt") if p.name not in skip})
        faults.add(
            f"no list file {split}.txt in {', '.join(str(d) for d in directories)}."
            f"{did_you_mean(split, known)} Splits there: {', '.join(known) or 'none'}"
        )
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as exc:
        faults.add(f"list file {path} is not UTF-8 text ({exc.reason} at byte {exc.start})")
        return []
    lines = [line for line in lines if line]
    if not lines:
        faults.add(f"list file {path} is empty; write one image id per line")
    return lines


def _locate(
    root: Path, layout: Layout, lines: Sequence[str], *, faults: FaultCollector, require_masks: bool
) -> list[tuple[str, Path, Path | None]]:
    """Return id, image and mask path per line; add a fault for each that is missing, ambiguous or repeated."""
    image_directory = root / _IMAGE_DIRECTORIES[layout]
    images = _index(image_directory, IMAGE_SUFFIXES)
    masks = [_index(root / d, (".png",)) for d in _MASK_DIRECTORIES[layout]]
    mask_names = " or ".join(f"{d}/" for d in _MASK_DIRECTORIES[layout])
    rows: list[tuple[str, Path, Path | None]] = []
    seen: set[str] = set()
    if lines and not images:
        faults.add(f"no images in {image_directory}")
    for line in lines:
        pair = _PAIR_LINE.fullmatch(line)
        if pair:
            name = PurePosixPath(pair["image"]).stem
            found, mask = _inside(root, pair["image"]), _inside(root, pair["mask"])
            candidates, mask_place = [found] if found else [], pair["mask"]
        else:
            suffix = PurePosixPath(line).suffix
            name = line if line in images or suffix.lower() not in IMAGE_SUFFIXES else line.removesuffix(suffix)
            candidates, mask_place = images.get(name, []), f"{mask_names}{name}.png"
            mask = next((index[name][0] for index in masks if name in index), None)
        if name in seen:
            faults.add(f"id {name!r} is listed twice")
            continue
        seen.add(name)
        if not candidates and (images or pair):
            faults.add(f"id {name!r} has no image ({pair['image'] if pair else image_directory.name + '/' + name})")
        elif len(candidates) > 1:
            faults.add(f"id {name!r} has {len(candidates)} images: {', '.join(p.name for p in candidates)}")
        if mask is None and require_masks:
            faults.add(f"id {name!r} has no mask ({mask_place})")
        if candidates:
            rows.append((name, candidates[0], mask))
    return rows


def _index(directory: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """Return the files below ``directory`` by their path without the extension."""
    index: dict[str, list[Path]] = {}
    for parent, _, files in os.walk(directory):
        for file in sorted(files):
            path = Path(parent) / file
            if path.suffix.lower() in suffixes:
                index.setdefault(path.relative_to(directory).with_suffix("").as_posix(), []).append(path)
    return index


def _inside(root: Path, name: str) -> Path | None:
    """Return the existing file ``name`` below ``root``; None when it is missing or outside."""
    relative = PurePosixPath(name.lstrip("/"))
    path = root / relative
    return path if ".." not in relative.parts and path.is_file() else None


def _image_size_hw(path: Path) -> tuple[int, int]:
    """Return height and width of the upright image, from the file's header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = _orientation(image)
    except Exception as exc:  # decoders raise almost anything on a damaged header
        raise InputError(f"Image {path} cannot be read: {exc}. Replace the file or take it out of the list.") from exc
    return (width, height) if orientation in _SIDEWAYS else (height, width)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTag.Orientation)
    except Exception:  # damaged EXIF: the image is used as it is stored, as cilseg_serve.images does
        return None


def _sizes(ids: Sequence[str], paths: Sequence[Path | None]) -> str:
    return "\n".join(f"{name}\t{path.stat().st_size if path else -1}" for name, path in zip(ids, paths, strict=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
