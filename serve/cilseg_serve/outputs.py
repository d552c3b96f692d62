"""What a batch run writes for one image, and the row that records it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import write_file_atomically
from cilseg.classes import ClassSet
from cilseg.errors import InputError, did_you_mean
from cilseg_serve.coco import class_segments
from cilseg_serve.polygons import to_geojson
from cilseg_serve.segmentation import Segmentation

FORMATS = ("png", "rle", "polygons", "coco", "geotiff")
MASKS, OVERLAYS, RLE, POLYGONS = "masks", "overlays", "rle", "polygons"
PARTS = (MASKS, OVERLAYS, RLE, POLYGONS)
RLE_SCHEMA = "cilseg.rle/1"


@dataclass(frozen=True)
class OutputOptions:
    """Which files are written: ``formats`` out of :data:`FORMATS`, and overlays.

    Raises:
        InputError: an unknown format, or none at all.
    """

    formats: tuple[str, ...] = ("png",)
    overlays: bool = True

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(
                    f"Unknown output format {name!r}.{did_you_mean(name, FORMATS)} Formats: {', '.join(FORMATS)}."
                )
        if not self.formats and not self.overlays:
            raise InputError(f"Nothing would be written. Choose at least one format: {', '.join(FORMATS)}.")

    @property
    def streamed(self) -> bool:
        """Whether images go from file to file without ever being whole in memory."""
        return "geotiff" in self.formats


def write_outputs(
    target: Path,
    name: str,
    image: npt.NDArray[np.uint8],
    result: Segmentation,
    *,
    class_set: ClassSet,
    options: OutputOptions,
) -> dict[str, Any]:
    """Write the files of one image, each atomically, and return the row of the summary.

    Raises:
        OSError: they cannot be written.
    """
    row: dict[str, Any] = {"mask": None, "overlay": None}
    if "png" in options.formats:
        row["mask"] = f"{MASKS}/{name}.png"
        result.save(_made(target / row["mask"]))
    if options.overlays:
        row["overlay"] = f"{OVERLAYS}/{name}.jpg"
        write_file_atomically(_made(target / row["overlay"]), _jpeg(result.overlay(image)))
    if {"rle", "coco"} & set(options.formats):
        row["rle"] = f"{RLE}/{name}.json"
        segments = class_segments(result.mask, class_set)
        document = {"schema": RLE_SCHEMA, "size": list(result.mask.shape), "segments": segments}
        write_file_atomically(_made(target / row["rle"]), _json(document))
    if "polygons" in options.formats:
        row["polygons"] = f"{POLYGONS}/{name}.geojson"
        write_file_atomically(_made(target / row["polygons"]), _json(to_geojson(result.polygons(), class_set.names)))
    height, width = result.mask.shape
    return {**row, "width_px": width, "height_px": height, "coverage": rounded(result.coverage)}


def rounded(coverage: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 6) for name, share in coverage.items()}


def missing_files(target: Path, row: dict[str, Any]) -> Sequence[str]:
    """Return the files that a row names and that are not there."""
    named = [row.get(key) for key in ("mask", "overlay", "rle", "polygons")]
    return [name for name in named if name is not None and not (target / name).is_file()]


def remove_leftovers(target: Path, names: Set[str]) -> None:
    """Remove what a killed process left half-written for these output names; other shards may be writing others."""
    for part in PARTS:
        for path in (target / part).rglob(".*"):
            final = path.name[1:].rsplit(".", 2)[0]  # .NAME.png.RANDOM.tmp
            name = path.relative_to(target / part).with_name(final).with_suffix("")
            if path.suffix in (".tmp", ".tif") and name.as_posix() in names:
                path.unlink(missing_ok=True)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
