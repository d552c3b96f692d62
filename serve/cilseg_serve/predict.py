"""Segment files and folders of images into a folder of masks, overlays and one summary."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg import __version__
from cilseg.bundle import write_file_atomically
from cilseg.errors import CilsegError, FaultCollector, InputError
from cilseg_serve.images import IMAGE_SUFFIXES, read_image
from cilseg_serve.segmenter import Segmenter

SUMMARY = "summary.json"
SCHEMA = "cilseg.predictions/1"
_PARTS = ("masks", "overlays")


@dataclass(frozen=True)
class PredictedImage:
    """One image that was segmented; ``mask`` and ``overlay`` are relative to the output folder."""

    file: Path
    mask: Path
    overlay: Path | None
    width_px: int
    height_px: int
    coverage: dict[str, float]


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict_paths` did: images in input order, and the failures with their reasons."""

    images: tuple[PredictedImage, ...]
    failures: tuple[tuple[Path, str], ...]
    summary: dict[str, Any]


def predict_paths(
    segmenter: Segmenter,
    inputs: Sequence[str | Path],
    out_dir: str | Path,
    *,
    overlays: bool = True,
    on_progress: Callable[[int, int, Path], None] | None = None,
) -> Predictions:
    """Segment every image of ``inputs`` (files, or folders searched recursively) into ``out_dir``.

    Writes ``masks/NAME.png`` (palette PNG of ids), ``overlays/NAME.jpg`` and ``summary.json`` (``complete`` is false
    until the end); folders below a given folder are kept, a name taken twice gets ``-2``, ``-3``. An image that cannot
    be read is listed under ``failures`` and the rest goes on.

    Args:
        on_progress: called after each image with (done, total, file).

    Raises:
        InputError: an input that does not exist, no image among the inputs, ``out_dir`` is a file or holds masks that
            are not an earlier output of this function; nothing is written.
        OSError: the output cannot be written; finished images stay, none is half-written.
    """
    target = Path(out_dir)
    _check_target(target)
    found = find_images(inputs, exclude=target)
    target.mkdir(parents=True, exist_ok=True)
    _write_summary(target, _summary(segmenter, [], [], complete=False))
    images: list[PredictedImage] = []
    failures: list[tuple[Path, str]] = []
    for done, (file, name) in enumerate(found, start=1):
        try:
            images.append(_predict_one(segmenter, file, name, target, overlays=overlays))
        except CilsegError as exc:
            failures.append((file, str(exc)))
        if on_progress is not None:
            on_progress(done, len(found), file)
    summary = _summary(segmenter, images, failures, complete=True)
    _write_summary(target, summary)
    return Predictions(tuple(images), tuple(failures), summary)


def find_images(inputs: Sequence[str | Path], *, exclude: Path) -> list[tuple[Path, Path]]:
    """Return (image file, output name without suffix) for every image among ``inputs``, each file once.

    Files named directly are taken whatever their suffix; folders give their images by suffix, hidden ones and those
    under ``exclude`` / ``masks`` or ``overlays`` (an earlier output) left out.

    Raises:
        InputError: inputs that do not exist, or folders without images, all named.
    """
    faults = FaultCollector("Inputs")
    shut = tuple((exclude / part).resolve() for part in _PARTS)
    seen: set[Path] = set()
    taken: set[str] = set()
    found: list[tuple[Path, Path]] = []
    for path in map(Path, inputs):
        if path.is_dir():
            pairs = [(file, file.relative_to(path)) for file in _images_under(path, shut)]
            if not pairs:
                faults.add(f"{path}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif path.is_file():
            pairs = [(path, Path(path.name))]
        else:
            faults.add(f"{path}: no such file or folder")
            continue
        for file, relative in pairs:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                found.append((file, _free_name(relative.with_suffix(""), taken)))
    if not inputs:
        faults.add("none were given")
    faults.raise_if_any("Give image files or folders that hold images.")
    return found


def _check_target(target: Path) -> None:
    """Refuse an output that is a file, or a folder whose masks somebody else made (ground truth, perhaps)."""
    if target.exists() and not target.is_dir():
        raise InputError(f"Output {target} is a file, expected a folder. Choose another name.")
    occupied = [part for part in _PARTS if (target / part).exists()]
    if not occupied:
        return
    try:
        ours = json.loads((target / SUMMARY).read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise InputError(
            f"Output {target} already holds {' and '.join(occupied)}/ that cilseg predict did not write; they could be "
            "overwritten. Choose another folder."
        )


def _images_under(folder: Path, shut: tuple[Path, ...]) -> list[Path]:
    def wanted(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        inside_output = any(file.resolve().is_relative_to(part) for part in shut)
        return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and not inside_output and file.is_file()

    return sorted(file for file in folder.rglob("*") if wanted(file))


def _free_name(name: Path, taken: set[str]) -> Path:
    """Return ``name``, or ``name-2``, ``name-3`` ... if it is taken (compared without case); mark it as taken."""
    candidate, number = name, 1
    while candidate.as_posix().casefold() in taken:
        number += 1
        candidate = name.with_name(f"{name.name}-{number}")
    taken.add(candidate.as_posix().casefold())
    return candidate


def _predict_one(segmenter: Segmenter, file: Path, name: Path, target: Path, *, overlays: bool) -> PredictedImage:
    image = read_image(file)
    result = segmenter.segment(image)
    mask = Path("masks", f"{name}.png")
    (target / mask).parent.mkdir(parents=True, exist_ok=True)
    result.save(target / mask)
    overlay = None
    if overlays:
        overlay = Path("overlays", f"{name}.jpg")
        (target / overlay).parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(target / overlay, _jpeg(result.overlay(image)))
    height, width = result.mask.shape
    return PredictedImage(file, mask, overlay, width, height, result.coverage)


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _write_summary(target: Path, summary: dict[str, Any]) -> None:
    write_file_atomically(target / SUMMARY, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())


def _summary(
    segmenter: Segmenter,
    images: Sequence[PredictedImage],
    failures: Sequence[tuple[Path, str]],
    *,
    complete: bool,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "complete": complete,
        "cilseg": __version__,
        "model": {"name": segmenter.name, "digest": segmenter.digest},
        "classes": segmenter.class_set.to_json(),
        "images": [
            {
                "file": str(i.file),
                "mask": i.mask.as_posix(),
                "overlay": None if i.overlay is None else i.overlay.as_posix(),
                "width_px": i.width_px,
                "height_px": i.height_px,
                "coverage": {name: round(share, 6) for name, share in i.coverage.items()},
            }
            for i in images
        ],
        "failures": [{"file": str(file), "reason": reason} for file, reason in failures],
    }
