"""The labels that a two-stage method made, for people to look at."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg.registry import Registry, Version
from cilseg.update.bundle import PSEUDO_LABELS_FILE
from cilseg_serve import Segmentation
from cilseg_serve.images import IMAGE_SUFFIXES, read_image, read_mask

SHEET = "contact_sheet.png"
_CELL_PX = 160
_SHOWN = 36


@dataclass(frozen=True)
class Extracted:
    """Where the labels were written, how many, the contact sheet, and how many of its cells show their image."""

    folder: Path
    labels: int
    sheet: Path
    images_found: int


def extract_pseudo_labels(
    registry: Registry, ref: str | None, folder: Path, *, image_root: Path | None = None
) -> Extracted:
    """Write the pseudo-labels of a version as PNGs (channel ids) and a contact sheet of those that show most.

    Args:
        registry: where the version is.
        ref: the version.
        folder: where to write; made when missing.
        image_root: folder of the images; cells of the sheet then show labels over images, else labels alone.

    Raises:
        NotFoundError: the version has none: its method does not make any.
        InputError: ``folder`` is a file, ``image_root`` is no folder.
        ArtifactError: the attachment is damaged.
    """
    version = registry.resolve(ref)
    if PSEUDO_LABELS_FILE not in registry.attachments(version):
        raise NotFoundError(
            f"{version.ref} has no pseudo-labels: its method {version.manifest.method!r} makes none. Methods that keep "
            "them are tags, cam, seam, ss and eps."
        )
    attachment = registry.attachment(version, PSEUDO_LABELS_FILE)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Give a folder for the labels.")
    if image_root is not None and not image_root.is_dir():
        raise InputError(f"{image_root} is no folder. Name the folder of the images that were tagged.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(attachment.path) as archive:
            names = [n for n in archive.namelist() if "/" not in n and n.endswith(".png")]
            archive.extractall(folder, members=names)
    except (zipfile.BadZipFile, OSError) as exc:
        raise ArtifactError(f"The pseudo-labels of {version.ref} cannot be unpacked: {exc}.") from exc
    files = [folder / name for name in sorted(names)]
    images = (
        {p.stem: p for p in sorted(image_root.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES} if image_root else {}
    )
    return _draw_sheet(version, folder, files, images)


def _draw_sheet(version: Version, folder: Path, files: list[Path], images: dict[str, Path]) -> Extracted:
    masks = [read_mask(file) for file in files]
    per_step = version.manifest.architecture.classes_per_step
    first_new, n_classes = sum(per_step[:-1]), sum(per_step)
    shown = [float(((mask >= first_new) & (mask < n_classes)).mean()) for mask in masks]
    order = sorted(range(len(files)), key=lambda i: (-shown[i], i))
    # Every k-th of those with labels, most to least: not the best ones alone.
    labelled = [i for i in order if shown[i] > 0] or order
    chosen = labelled[:: max(1, len(labelled) // _SHOWN)][:_SHOWN]
    cells, found = [], 0
    for i in chosen:
        image = images.get(files[i].stem.partition("-")[2])
        found += image is not None
        cells.append(_cell(version, masks[i], image))
    columns = min(6, max(1, len(cells)))
    sheet = Image.new("RGB", (columns * _CELL_PX, math.ceil(len(cells) / columns) * _CELL_PX), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, ((k % columns) * _CELL_PX, (k // columns) * _CELL_PX))
    sheet.save(folder / SHEET)
    return Extracted(folder, len(files), folder / SHEET, found)


def _cell(version: Version, mask: npt.NDArray[np.uint8], image: Path | None) -> Image.Image:
    class_set = version.manifest.class_set
    pixels = read_image(image) if image is not None else np.full((*mask.shape, 3), 128, dtype=np.uint8)
    if pixels.shape[:2] != mask.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize((mask.shape[1], mask.shape[0])))
    picture = Image.fromarray(Segmentation(mask, class_set.names, class_set.palette).overlay(pixels, alpha=0.6))
    return ImageOps.contain(picture, (_CELL_PX - 4, _CELL_PX - 4))
