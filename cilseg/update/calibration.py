"""Images for checking and calibrating an export: from the gate set, a tag list or a folder, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cilseg.classes import ClassSet
from cilseg.data.image_folders import images_in
from cilseg.data.labels import map_mask
from cilseg.data.source import Source
from cilseg.data.taglist import TagList, load_tag_list
from cilseg.data.tags import ABSENT, PRESENT, UNKNOWN
from cilseg.errors import InputError, NotFoundError, did_you_mean
from cilseg.registry import Version
from cilseg.update.gate_set import image_hashes, open_gate_set
from cilseg_export.accuracy import AnnotatedImage
from cilseg_serve.images import read_image
from cilseg_serve.preprocessing import prepare

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
"""Image ``(h, w, 3)`` as the network sees it -> mask ``(h, w)``: the trained model."""
LEAST_SHARE = 0.002
"""Share of an image that the model has to give to a class for the image to count as showing it."""
_LOOKED_AT = 2  # images with a class on the model's own word; enough of them, and the model is not asked further


@dataclass(frozen=True)
class Candidates:
    """Images that may calibrate, and what is known of them: ``states`` ``(N, n_foreground)`` 1, 0, or -1 unknown."""

    what: str
    files: tuple[Path, ...]
    states: npt.NDArray[np.int8]
    from_gate_set: bool = False


@dataclass(frozen=True)
class GateImages:
    """Annotated images of a version's gate set, read one by one; ``hidden`` are ids that nobody annotated there."""

    version: Version
    source: Source
    hidden: frozenset[int]

    @classmethod
    def of(cls, version: Version) -> GateImages | None:
        """Open the gate set that a version records; None where it records none."""
        gate_set = version.manifest.gate_set
        if gate_set is None:
            return None
        classes = version.manifest.class_set
        hidden = frozenset(classes.id_of(name) for name in classes.foreground if name not in gate_set.classes)
        return cls(version, open_gate_set(gate_set), hidden)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        manifest = self.version.manifest
        visible = [n for n in manifest.class_set.foreground if n in set(self.source.label_names.values())]
        for index, name in enumerate(self.source.ids):
            truth = map_mask(self.source.mask(index), self.source.label_names, manifest.class_set, visible=visible)
            yield AnnotatedImage(name, prepare(self.source.image(index), manifest.preprocessing), truth)

    def without(self, files: Sequence[Path]) -> GateImages:
        """Return the images whose content is none of ``files``."""
        taken = set(image_hashes(files))
        hashes = image_hashes(self.source.image_paths)
        kept = [name for name, digest in zip(self.source.ids, hashes, strict=True) if digest not in taken]
        return replace(self, source=self.source.subset(kept))

    def candidates(self) -> Candidates:
        """Return its images as candidates: present and absent by their masks, unknown where nobody annotated."""
        classes = self.version.manifest.class_set
        states = np.array(
            [[PRESENT if name in tags else ABSENT for name in classes.foreground] for tags in self.source.tags()],
            dtype=np.int8,
        ).reshape(len(self), len(classes) - 1)
        states[:, [i - 1 for i in sorted(self.hidden)]] = UNKNOWN
        return Candidates("the gate set", self.source.image_paths, states, from_gate_set=True)


def open_candidates(path: Path, class_set: ClassSet) -> Candidates:
    """Open a tag list, a folder of images, or a folder with one folder of images per class.

    Raises:
        NotFoundError: no such file or folder.
        InputError: faults of the tag list, no images, or folders that are no classes.
    """
    if path.is_file():
        tags = _read_tags(path, class_set)
        return Candidates(str(path), tuple(image.file for image in tags.images), tags.states(class_set))
    if not path.is_dir():
        raise NotFoundError(f"{path} does not exist. Calibrate with a tag list (JSON) or a folder of images.")
    files, rows = list(images_in(path)), []
    rows += [np.full(len(class_set) - 1, UNKNOWN, dtype=np.int8)] * len(files)
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder.name not in class_set.foreground:
            raise InputError(
                f"Folder {folder} is no class of the model.{did_you_mean(folder.name, class_set.foreground)} Name "
                f"folders after classes ({', '.join(class_set.foreground)}), or give a folder of images alone."
            )
        row = np.full(len(class_set) - 1, UNKNOWN, dtype=np.int8)
        row[class_set.id_of(folder.name) - 1] = PRESENT
        found = images_in(folder)
        files += found
        rows += [row] * len(found)
    if not files:
        raise InputError(f"Folder {path} holds no images. Calibrate with a tag list (JSON) or a folder of images.")
    return Candidates(str(path), tuple(files), np.stack(rows))


def _read_tags(path: Path, class_set: ClassSet) -> TagList:
    """Read a tag list that names the model's newest classes as new, or none as new."""
    try:
        return load_tag_list(path, class_set=class_set)
    except InputError as exc:
        if not class_set.last_step:
            raise
        newest = class_set.of_step(class_set.last_step)
        try:
            return load_tag_list(path, class_set=ClassSet.base([n for n in class_set.foreground if n not in newest]))
        except InputError:
            raise exc from None


def presence(
    candidates: Candidates, predict: Predict, prepared: Callable[[int], npt.NDArray[np.uint8]]
) -> npt.NDArray[np.bool_]:
    """Return ``(N, n_foreground)``: which image shows which class; where nothing is known the model is asked.

    The model is asked no further once it has seen every unknown class on two images.
    """
    shown: npt.NDArray[np.bool_] = candidates.states == PRESENT
    unknown = candidates.states == UNKNOWN
    for index in range(len(shown)):
        missing = shown.sum(axis=0) < _LOOKED_AT
        if not (unknown & missing).any():
            break
        if (unknown[index] & missing).any():
            mask = predict(prepared(index))
            share = np.bincount(mask.ravel(), minlength=shown.shape[1] + 1)[1 : shown.shape[1] + 1] / mask.size
            shown[index] |= unknown[index] & (share >= LEAST_SHARE)
    return shown


def read_prepared(file: Path, version: Version) -> npt.NDArray[np.uint8]:
    """Read an image at the size at which the version's network sees it."""
    return prepare(read_image(file), version.manifest.preprocessing)
