"""A method that learns from tags, points or scribbles must not see a mask: noise there changes no bit of the result."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cilseg.config import load_config
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import open_source
from cilseg.data.taglist import Point, TaggedImage, tags_from_source, write_tag_list
from cilseg.errors import InputError
from cilseg.methods import METHODS
from cilseg.registry import Registry
from cilseg.update import BaseRequest, UpdateRequest, train_version, update_version
from cilseg_serve.images import write_mask

OVERRIDES = [
    "model.head_channels=16",
    "runtime.device=cpu",
    "runtime.precision=32-true",
    "runtime.threads=1",
    "train.optimiser.epochs=1",
    "update.optimiser.epochs=2",
    "update.wilson.warm_up_epochs=1",
    *(f"update.{m}.weak.{key}" for m in ("cam", "seam", "ss", "eps") for key in ("epochs=2", "crop_px=64")),
    *(f"update.{m}.weak.batch_size=4" for m in ("cam", "seam", "ss", "eps")),
    *(f"update.{m}.scales=[1.0]" for m in ("cam", "seam", "ss", "eps")),
    "update.ss.warm_up_epochs=1",
    *(f"{part}.optimiser.{key}" for part in ("train", "update") for key in ("crop_px=64", "batch_size=4")),
]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A folder with scenes, a base model of two classes, and a tag list of two more."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("story")
    classes = SCENE_CLASSES[:4]
    generate_scenes(root / "scenes", train=16, val=4, size_px=64, seed=1, classes=classes)
    config = load_config("tiny", OVERRIDES)
    request = BaseRequest(name="shapes", data=root / "scenes", config=config, classes=classes[:2])
    train_version(Registry.open(root / "registry"), request)
    source = open_source(root / "scenes", split="train")
    tags = tags_from_source(source, range(len(source)), new_classes=classes[2:], old_classes=classes[:2])
    images = [annotated(source, i, image, classes[2:]) for i, image in enumerate(tags.images)]
    write_tag_list(root / "tags.json", dataclasses.replace(tags, images=tuple(images)))
    return root


def annotated(source, index: int, image, new) -> TaggedImage:
    """The image with a point in each new class that it shows, and a scribble over the same pixels."""
    mask = source.mask(index)
    values = {name: value for value, name in source.label_names.items()}
    points, scribble = [], np.full(mask.shape, 255, np.uint8)
    for number, name in enumerate(new, start=1):
        rows, columns = np.nonzero(mask == values[name])
        if len(rows):
            points.append(Point(float(columns[0]), float(rows[0]), name))
            scribble[rows[:20], columns[:20]] = number
    file = image.file.with_name(f"{image.file.stem}.scribble.png")
    write_mask(file, scribble, np.zeros((4, 3), np.uint8))
    return dataclasses.replace(image, points=tuple(points), scribble=file)


def checkpoint_after_update(root, registry, method: str, options: list[str]) -> tuple[str, str]:
    """Return the parent's and the candidate's checkpoint hash; the gate alone may look at masks, and is not asked."""
    config = load_config("tiny", [*OVERRIDES, f"update.method={method}", *options])
    request = UpdateRequest(
        config=config, tags=root / "tags.json", saliency="builtin" if method == "eps" else None, gate=False
    )
    result = update_version(Registry.open(registry), request)
    files = [version.manifest.files for version in (result.parent, result.candidate)]
    return files[0]["checkpoint.safetensors"], files[1]["checkpoint.safetensors"]


WITHOUT_MASKS = [name for name, m in METHODS.items() if m.supervision in ("tags", "points", "scribbles")]
WALK = [
    "update.seam.random_walk=true",
    "update.seam.radius=2",
    *(f"update.seam.affinity.{key}" for key in ("epochs=1", "batch_size=4", "crop_px=64")),
]


def test_every_row_without_masks_is_here():
    assert {"cam", "seam", "ss", "eps", "wilson", "mib-points", "mib-scribbles"} <= set(WITHOUT_MASKS)


@pytest.mark.parametrize(
    ("method", "options"), [*((name, []) for name in WITHOUT_MASKS), pytest.param("seam", WALK, id="seam-walk")]
)
def test_noise_masks_change_no_bit(story, tmp_path, method, options):
    root = tmp_path / "story"
    shutil.copytree(story, root)
    parent, wanted = checkpoint_after_update(root, story_copy(root, "first"), method, options)
    assert parent != wanted

    noise = np.random.default_rng(0)
    step_images = (root / "scenes" / "train.txt").read_text().split()
    for name in step_images:
        path = root / "scenes" / "masks" / f"{name}.png"
        path.unlink()  # a copy, never the story's own
        Image.fromarray(noise.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match="holds the values"):  # the noise is seen by whoever looks
        open_source(root / "scenes", split="train").mask(0)
    assert checkpoint_after_update(root, story_copy(root, "second"), method, options) == (parent, wanted)


def story_copy(root, name: str):
    """A registry that holds the base model only."""
    shutil.copytree(root / "registry", root / name)
    return root / name
