"""A method that learns from tags must not see a mask: noise in their place changes no bit of the result."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cilseg.config import load_config
from cilseg.data.scenes import SCENE_CLASSES, generate_scenes
from cilseg.data.source import open_source
from cilseg.data.taglist import tags_from_source, write_tag_list
from cilseg.errors import InputError
from cilseg.methods import METHODS
from cilseg.registry import Registry
from cilseg.update import BaseRequest, UpdateRequest, train_version, update_version

OVERRIDES = [
    "model.head_channels=16",
    "runtime.device=cpu",
    "runtime.precision=32-true",
    "runtime.threads=1",
    "train.optimiser.epochs=1",
    "update.optimiser.epochs=3",
    "update.wilson.warm_up_epochs=1",
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
    write_tag_list(root / "tags.json", tags)
    return root


def checkpoint_after_update(root, registry, method: str) -> tuple[str, str]:
    """Return the parent's and the candidate's checkpoint hash."""
    config = load_config("tiny", [*OVERRIDES, f"update.method={method}"])
    result = update_version(Registry.open(registry), UpdateRequest(config=config, tags=root / "tags.json"))
    files = [version.manifest.files for version in (result.parent, result.candidate)]
    return files[0]["checkpoint.safetensors"], files[1]["checkpoint.safetensors"]


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.supervision == "tags"])
def test_noise_masks_change_no_bit(story, tmp_path, method):
    root = tmp_path / "story"
    shutil.copytree(story, root)
    parent, wanted = checkpoint_after_update(root, story_copy(root, "first"), method)
    assert parent != wanted

    noise = np.random.default_rng(0)
    step_images = (root / "scenes" / "train.txt").read_text().split()
    for name in step_images:
        path = root / "scenes" / "masks" / f"{name}.png"
        path.unlink()  # a copy, never the story's own
        Image.fromarray(noise.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match="holds the values"):  # the noise is seen by whoever looks
        open_source(root / "scenes", split="train").mask(0)
    assert checkpoint_after_update(root, story_copy(root, "second"), method) == (parent, wanted)


def story_copy(root, name: str):
    """A registry that holds the base model only."""
    shutil.copytree(root / "registry", root / name)
    return root / name
