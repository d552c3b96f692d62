"""A base model and tag lists for the tests of updates."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cilseg.config import Config, load_config
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import Source, open_source
from cilseg.registry import Registry
from cilseg.update import BaseRequest, train_version

OLD = SCENE_CLASSES[:2]
NEW = SCENE_CLASSES[2]
_SMALL = ("epochs=1", "batch_size=4", "crop_px=64")
OVERRIDES = [
    "model.head_channels=16",
    "model.head_dilations=[1, 2]",
    "runtime.device=cpu",
    "runtime.precision=32-true",
    "runtime.threads=1",
    *(f"{part}.optimiser.{key}" for part in ("train", "update") for key in _SMALL),
]


def settings(method: str, *overrides: str) -> Config:
    return load_config("tiny", [*OVERRIDES, f"update.method={method}", *overrides], check_methods=True)


@dataclass(frozen=True)
class BaseStory:
    """Where the scenes and the registry with ``shapes:1`` are."""

    root: Path

    @property
    def scenes(self) -> Path:
        return self.root / "scenes"

    @property
    def source(self) -> Source:
        return open_source(self.scenes, split="train")

    def copy(self, target: Path) -> Registry:
        return Registry.open(shutil.copytree(self.root / "registry", target))

    def tag_list(self, path: Path, *, n: int = 8, image_root: Path | None = None, **fields: Any) -> Path:
        """Write a tag list of the first scenes; ``fields`` maps an index to fields of that image."""
        source = self.source
        rows = [
            {
                "file": source.image_paths[i].name,
                "present": [NEW] if NEW in source.classes_in(i) else [],
                **fields.get(f"image{i}", {}),
            }
            for i in range(n)
        ]
        root = image_root or self.scenes / "images"
        path.write_text(json.dumps({"image_root": str(root), "classes": [{"name": NEW}], "images": rows}))
        return path

    def replay(self, folder: Path, names: tuple[str, ...] = OLD, *, images: int = 2) -> Path:
        """Make one folder of images per class."""
        for name in names:
            (folder / name).mkdir(parents=True)
            for file in self.source.image_paths[-images:]:
                shutil.copy(file, folder / name)
        return folder

    def first_with(self, name: str) -> tuple[int, tuple[int, int]]:
        """Return the first image that shows a class, and a pixel (x, y) of it."""
        source = self.source
        value = {n: v for v, n in source.label_names.items()}[name]
        index = next(i for i in range(len(source)) if name in source.classes_in(i))
        rows, columns = np.nonzero(source.mask(index) == value)
        return index, (int(columns[0]), int(rows[0]))


def tell(root: Path) -> BaseStory:
    generate_scenes(root / "scenes", train=12, val=4, size_px=64, seed=3, classes=SCENE_CLASSES[:4])
    request = BaseRequest(name="shapes", data=root / "scenes", config=settings("wilson"), classes=OLD)
    train_version(Registry.open(root / "registry"), request)
    return BaseStory(root)
