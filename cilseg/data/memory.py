"""Images of the base step that are stored with the version, for later steps to train on again (rehearsal).

They are picked for coverage: each turn takes the class that the fewest chosen images show, and of its images the one
whose features lie farthest from those chosen so far (farthest-first traversal; Gonzalez, "Clustering to minimize the
maximum intercluster distance", 1985; used for training sets by Sener and Savarese, "Active Learning for Convolutional
Neural Networks: A Core-Set Approach", ICLR 2018).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.classes import default_palette
from cilseg.errors import ArtifactError, InputError
from cilseg_serve.images import decode_image, encode_mask

MEMORY_FILE = "memory.zip"
_INDEX = "memory.json"


def pick_by_coverage(shown: npt.NDArray[np.bool_], features: npt.NDArray[np.floating], *, budget: int) -> list[int]:
    """Return the rows of the images to store, in the order of their choice.

    Args:
        shown: (N, C) which image shows which class.
        features: (N, D) one vector per image; only their directions count.
        budget: how many images; fewer are returned when fewer show any class.

    Raises:
        InputError: ``budget`` is below 1.
    """
    if budget < 1:
        raise InputError(f"A memory holds at least one image, got {budget}.")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    nearest = np.full(len(shown), np.inf)
    chosen: list[int] = []
    left: npt.NDArray[np.bool_] = np.asarray(shown.any(axis=1))
    while len(chosen) < budget and left.any():
        counts = shown[chosen].sum(axis=0)
        open_classes = np.flatnonzero(shown[left].any(axis=0))
        rarest = open_classes[counts[open_classes].argmin()]
        candidates = np.flatnonzero(left & shown[:, rarest])
        if chosen:
            row = int(candidates[nearest[candidates].argmax()])
        else:  # the most typical image of the first class
            row = int(candidates[(unit[candidates] @ unit[candidates].mean(axis=0)).argmax()])
        chosen.append(row)
        left[row] = False
        nearest = np.minimum(nearest, 1.0 - unit @ unit[row])
    return chosen


def write_memory(
    path: Path, images: Sequence[Path], masks: Sequence[npt.NDArray[np.uint8]], *, n_channels: int
) -> None:
    """Write image files as they are and their channel masks (H, W) into one archive.

    Args:
        path: of the archive.
        images: files.
        masks: channel ids of the base classes, 255 void.
        n_channels: channels that the masks know, background included.
    """
    palette = default_palette(n_channels)
    with zipfile.ZipFile(path, "w") as archive:  # nothing to compress
        names = [f"{i:05d}{file.suffix}" for i, file in enumerate(images)]
        _add(archive, _INDEX, json.dumps({"n_channels": n_channels, "images": names}).encode())
        for i, (name, file, mask) in enumerate(zip(names, images, masks, strict=True)):
            _add(archive, f"images/{name}", file.read_bytes())
            _add(archive, f"masks/{i:05d}.png", encode_mask(mask, palette))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file without its time, so that equal contents make equal archives."""
    archive.writestr(zipfile.ZipInfo(name), content)


@dataclass(frozen=True)
class StoredMemory:
    """An archive of :func:`write_memory`."""

    path: Path
    names: tuple[str, ...]
    n_channels: int

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return image ``index``, (H, W, 3) uint8."""
        return decode_image(io.BytesIO(self._content(f"images/{self.names[index]}")), name=self.names[index])

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return its channel ids, (H, W) uint8."""
        with Image.open(io.BytesIO(self._content(f"masks/{index:05d}.png"))) as image:
            return np.array(image, dtype=np.uint8)

    def _content(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as exc:
            raise ArtifactError(f"Stored images {self.path} cannot be read: {exc}. Copy the version again.") from exc


def open_memory(folder: Path | None) -> StoredMemory | None:
    """Open the stored images of a version's folder; None where it stores none.

    Raises:
        ArtifactError: the archive is damaged.
    """
    path = None if folder is None else folder / MEMORY_FILE
    if path is None or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read(_INDEX))
        return StoredMemory(path, tuple(index["images"]), int(index["n_channels"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise ArtifactError(f"Stored images {path} cannot be read: {exc}. Copy the version again.") from exc
