"""Pictures that come in folders of their own: one folder per class, or one picture per training image."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.classes import normalise_name
from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean
from cilseg_serve.images import IMAGE_SUFFIXES, read_image
from cilseg_serve.preprocessing import network_size_hw


@dataclass(frozen=True)
class ImageFolders:
    """Images sorted into one folder per class; ``names[i]`` is the class of ``files[i]``."""

    files: tuple[Path, ...]
    names: tuple[str, ...]


def open_image_folders(root: Path | str, *, classes: Collection[str]) -> ImageFolders:
    """List ``root/CLASS/*`` for every class; the names of the folders are those of the classes.

    Raises:
        NotFoundError: no such folder.
        InputError: a class without a folder or with an empty one, a folder that names no class; all of them.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotFoundError(f"Folder {root} does not exist. Give a folder with one folder of images per class.")
    folders = {normalise_name(p.name): p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    faults = FaultCollector(f"Folder {root}")
    for name in sorted(folders.keys() - set(classes)):
        faults.add(f"folder {name!r} is no class of the model.{did_you_mean(name, classes)}")
    files: list[Path] = []
    names: list[str] = []
    for name in classes:
        found = images_in(folders[name]) if name in folders else []
        if not found:
            faults.add(f"class {name!r} has no {'image in its' if name in folders else ''} folder".replace("  ", " "))
        files += found
        names += [name] * len(found)
    faults.raise_if_any("Every class needs a folder of its name with at least one image.")
    return ImageFolders(tuple(files), tuple(names))


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def negative_files(folder: Path) -> list[Path]:
    """Return the images of ``folder`` and of the folders in it.

    Raises:
        NotFoundError: there is no such folder.
        InputError: it holds no image.
    """
    if not folder.is_dir():
        raise NotFoundError(f"--negatives {folder}: no such folder. Give a folder of images without the new classes.")
    files = [
        file for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())) for file in images_in(place)
    ]
    if not files:
        raise InputError(f"--negatives {folder}: no image in it. Give a folder of images without the new classes.")
    return files


def matching_files(folder: Path, files: Sequence[Path], *, what: str) -> tuple[Path, ...]:
    """Return for every image the picture of the same stem in ``folder``.

    Raises:
        NotFoundError: no such folder.
        InputError: images without a picture; all of them.
    """
    if not folder.is_dir():
        raise NotFoundError(f"Folder {folder} does not exist. Give a folder with one {what} per image, of its name.")
    by_stem = {p.stem: p for p in images_in(folder)}
    faults = FaultCollector(f"Folder {folder}")
    for file in files:
        if file.stem not in by_stem:
            faults.add(f"no {what} for {file.name} (expected {file.stem}.png)")
    faults.raise_if_any(f"Add one {what} per image of the list, named like the image.")
    return tuple(by_stem[file.stem] for file in files)


def priors_in(folder: Path, files: Sequence[Path]) -> tuple[Path | None, ...]:
    """Return for every image the PNG of the same stem in ``folder``, None where there is none.

    Raises:
        NotFoundError: no such folder.
        InputError: it has no PNG for any of the images.
    """
    if not folder.is_dir():
        raise NotFoundError(f"--prior-masks {folder}: no such folder. Give a folder of PNGs named like the images.")
    by_stem = {p.stem: p for p in images_in(folder) if p.suffix.lower() == ".png"}
    found = tuple(by_stem.get(file.stem) for file in files)
    if not any(found):
        raise InputError(
            f"--prior-masks {folder}: no PNG in it is named like one of the {len(files)} images of the list. Name them "
            f"like {files[0].stem}.png."
        )
    return found


def read_saliency(path: Path, *, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read a grey picture (the mean of its channels) as ``(height, width)`` uint8, resized where it differs.

    Raises:
        InputError: no image, or of another aspect than ``height`` to ``width``.
    """
    grey = read_image(path).mean(axis=2).round().astype(np.uint8)
    if abs(grey.shape[1] * height - grey.shape[0] * width) > max(height, width, *grey.shape) * 2:
        raise InputError(
            f"Saliency map {path} has {grey.shape[1]} x {grey.shape[0]} px, its image {width} x {height}; the two "
            "must have the same aspect."
        )
    resized: npt.NDArray[np.uint8] = np.asarray(Image.fromarray(grey).resize((width, height)))
    return resized


def read_saliency_of(
    maps: Sequence[Path], files: Sequence[Path], short_side_px: int | None, index: int
) -> npt.NDArray[np.uint8]:
    """Read the saliency map of image ``index`` at the size at which the network sees that image."""
    height, width = read_image(files[index]).shape[:2]
    height, width = network_size_hw(height, width, short_side_px)
    return read_saliency(maps[index], height=height, width=width)
