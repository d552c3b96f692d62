"""Broken input: one clear message with what to do, the right exit code, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_story import Commands, Contents, Story
from command_server import Finished
from PIL import Image

from cilseg.bundle import MANIFEST, GateSet, write_manifest
from cilseg.registry import Registry
from cilseg_serve.images import read_mask, write_mask

Refused = Callable[..., Finished]
Rows = list[dict[str, Any]]


@pytest.fixture
def refused(cilseg: Commands, registry: Path, contents: Contents) -> Refused:
    """Runs a command that has to be refused: exit code 2, nothing on stdout, registry and run folders untouched."""
    before = contents(registry)
    runs = sorted(registry.glob("runs/*/*"))

    def run(*arguments: object, code: int = 2) -> Finished:
        answer = cilseg(*arguments)
        assert answer.code == code, answer
        assert answer.out == ""
        assert answer.err.startswith("error: ")
        assert contents(registry) == before
        assert sorted(registry.glob("runs/*/*")) == runs
        return answer

    return run


@pytest.fixture
def tag_file(story: Story, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tag list: ten scenes, every other one with a tree, changed by the keywords."""

    def write(
        images: list[dict[str, Any]] | None = None, *, more: list[dict[str, Any]] | None = None, **head: Any
    ) -> Path:
        document = {
            "image_root": str(story.scenes / "images"),
            "classes": [{"name": "tree"}],
            "images": [*(rows() if images is None else images), *(more or [])],
            **head,
        }
        path = tmp_path / "tags.json"
        path.write_text(json.dumps(document))
        return path

    return write


def rows() -> Rows:
    return [{"file": f"train_{i:05}.png", "present": ["tree"] if i % 2 else []} for i in range(10)]


def spoil_images(folder: Path) -> None:
    """Truncate the first image, empty the second, replace the third by text."""
    first = folder / "train_00000.png"
    first.write_bytes(first.read_bytes()[:-200])
    (folder / "train_00001.png").write_bytes(b"")
    (folder / "train_00002.png").write_text("not an image")


# Tag lists


def test_unreadable_images_of_a_tag_list(
    story: Story, refused: Refused, tag_file: Callable[..., Path], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(story.scenes / "images", tmp_path / "images"))
    spoil_images(root)
    tags = tag_file(image_root=str(root))
    empty = refused("update", "--tags", tags).err
    assert "images[1].file: file 'train_00001.png' is empty (0 bytes)" in empty or "is empty (0 bytes)" in empty
    Image.new("RGB", (64, 64)).save(root / "train_00001.png")
    for flags in ((), ("--dry-run",)):
        message = refused("update", "--tags", tags, *flags).err
        assert "2 faults, nothing was written" in message
        assert f"{root}/train_00000.png: truncated or corrupt image" in message
        assert f"{root}/train_00002.png: not an image that can be read" in message
        assert "Replace or correct these files, or take them out of the list" in message


def test_every_fault_of_a_tag_list_in_one_message(refused: Refused, tag_file: Callable[..., Path]) -> None:
    bad = [
        {"file": "nowhere.png", "present": ["tree"]},
        {"file": "train_00020.png", "presnt": ["tree"]},
        {"file": "train_00001.png", "present": []},
        {"file": "train_00021.png", "present": ["Starfish"]},
        {"file": "train_00022.png", "present": ["treee"]},
    ]
    message = refused("update", "--tags", tag_file(more=bad, classes=[{"name": "tree"}, {"name": "Boat"}])).err
    assert "6 faults, nothing was written" in message
    assert "file 'nowhere.png' does not exist below" in message
    assert "unknown field 'presnt'. Did you mean 'present'?" in message
    assert "image 'train_00001.png' is listed 2 times" in message
    assert "class 'Starfish' exists as 'starfish'; use that spelling" in message
    assert "class 'Boat' exists as 'boat'; use that spelling" in message
    assert "class 'treee' is neither under 'classes' nor in the parent model. Did you mean 'tree'?" in message
    assert "--dry-run checks it without training" in message


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (1, "new class 'tree' has no image tagged absent (5 present, 0 unknown)"),
        (0, "new class 'tree' has no image tagged present: add images that show it"),
    ],
    ids=["no negatives", "no positives"],
)
def test_a_new_class_without_counterpart(refused: Refused, tag_file: Callable[..., Path], kept: int, text: str) -> None:
    tags = tag_file([row for i, row in enumerate(rows()) if i % 2 == kept])
    message = refused("update", "--tags", tags).err
    assert text in message
    assert "--dry-run shows how many images each class has per state" in message


def test_untagged_unknown_takes_the_negatives_away(refused: Refused, tag_file: Callable[..., Path]) -> None:
    message = refused("update", "--tags", tag_file(), "--untagged", "unknown").err
    assert "no image tagged absent (5 present, 5 unknown)" in message
    assert "--untagged absent" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty. A tag list is"),
        ("{'a.jpg': ['cow']}", "is not JSON: Expecting property name"),
        ('{"images": [], "classes": []}', "no images in it. A tag list is"),
    ],
    ids=["empty file", "not JSON", "no images"],
)
def test_no_tag_list(refused: Refused, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tags.json"
    path.write_text(text)
    assert says in refused("update", "--tags", path).err


# Training data


@pytest.fixture
def data(story: Story, tmp_path: Path) -> Path:
    return Path(shutil.copytree(story.scenes, tmp_path / "data"))


def test_unusable_images_and_masks_are_told_together_before_training(
    story: Story, refused: Refused, data: Path
) -> None:
    spoil_images(data / "images")
    masks = data / "masks"
    values = read_mask(masks / "train_00003.png")
    values[0, :2] = (77, 78)
    write_mask(masks / "train_00003.png", values, np.zeros((256, 3), np.uint8))
    with Image.open(masks / "train_00004.png") as image:
        image.resize((32, 48), Image.Resampling.NEAREST).save(masks / "train_00004.png")
    (masks / "train_00005.png").write_bytes((masks / "train_00005.png").read_bytes()[:-100])
    for command in (
        ("train", "other", "--data", data, "--config", story.config),
        ("update", "--method", "ft", "--data", data, "--classes", "tree"),
    ):
        message = refused(*command).err
        assert "6 faults, nothing was written" in message
        assert "train_00000.png: truncated or corrupt image" in message
        assert "train_00001.png: the image file is empty (0 bytes)" in message
        assert "train_00002.png: not an image that can be read" in message
        assert "train_00003.png holds the values [77, 78], which no class has" in message
        assert "train_00004.png is 32x48 pixels, its image train_00004.png is 64x64" in message
        assert "masks/train_00005.png: truncated or corrupt image" in message
        assert "Replace or correct these files, or take them out of the list" in message


def test_missing_images_and_masks(story: Story, refused: Refused, data: Path) -> None:
    (data / "images" / "train_00000.png").unlink()
    (data / "masks" / "train_00001.png").unlink()
    message = refused("train", "other", "--data", data, "--config", story.config).err
    assert "2 faults, nothing was written" in message
    assert "id 'train_00000' has no image" in message
    assert "id 'train_00001' has no mask" in message


def test_unusable_masks_of_the_images_that_judge(story: Story, refused: Refused, data: Path) -> None:
    (data / "masks" / "val_00003.png").write_bytes(b"")
    message = refused("train", "other", "--data", data, "--config", story.config).err
    assert "(split 'val'): 1 fault, nothing was written" in message
    assert "masks/val_00003.png: the mask file is empty" in message


def test_a_class_without_a_pixel(story: Story, refused: Refused, data: Path) -> None:
    (data / "labels.txt").write_text((data / "labels.txt").read_text() + "unicorn\n")
    message = refused("train", "other", "--data", data, "--config", story.config, "--classes", "boat,unicorn").err
    assert "class 'unicorn' is in none of the 40 masks" in message


def test_a_class_spelled_in_another_way_in_the_data(refused: Refused, data: Path) -> None:
    labels = (data / "labels.txt").read_text()
    (data / "labels.txt").write_text(labels.replace("starfish", "Starfish"))
    message = refused("update", "--method", "ft", "--data", data, "--classes", "tree").err
    assert "'Starfish', but the class is 'starfish'. Use one spelling" in message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--data", "nowhere"),
            "Data folder nowhere does not exist. Give the folder that holds images/ or JPEGImages/",
        ),
        (("--data", "DATA", "--split", "trian"), "no list file trian.txt in"),
        (("--data", "DATA", "--gate-split", "valid"), "--gate-split NAME takes another list, --gate-split '' none"),
        (("--data", "DATA", "--labels", "names.txt"), "Labels file names.txt cannot be read"),
        (("--data", "DATA", "--classes", "starfsh,boat,Huose"), "'starfsh' is no class of"),
        (("--data", "DATA", "--classes", "starfsh"), "Did you mean 'starfish'?"),
        (("--data", "DATA", "--classes", "boat,boat"), "Class 'boat' is there twice"),
        (("--data", "DATA", "--classes", ","), "--classes is empty"),
        ((), "Give the annotated images with --data DIR"),
        (("--data", "DATA", "--config", "tyni"), "Unknown preset 'tyni'."),
        (("--data", "DATA", "--config", "none.yaml"), "name a preset: mobilenetv2, tiny"),
        (
            ("--data", "DATA", "--set", "train.optimizer.epochs=1"),
            "unknown key train.optimizer. Did you mean 'optimiser'?",
        ),
        (("--data", "DATA", "--set", "epochs"), "override 'epochs' is not of the form section.key=value"),
        (("--data", "DATA", "--set", "seed={"), "override 'seed={' holds no readable YAML value"),
        (("--data", "DATA", "--weights", "none.safetensors"), "Weights file none.safetensors does not exist"),
        (("--data", "DATA", "--registry", "DATA"), "is no registry and not empty"),
    ],
)
def test_misspelt_arguments_of_train(story: Story, refused: Refused, arguments: tuple[str, ...], says: str) -> None:
    given = [str(story.scenes) if a == "DATA" else a for a in arguments]
    config = () if "--config" in given else ("--config", story.config)
    assert says in refused("train", "other", *given, *config).err


def test_a_name_that_cannot_be_registered_is_refused_before_training(story: Story, refused: Refused) -> None:
    assert "Model name 'Shapes:1' is not allowed" in refused("train", "Shapes:1", *story.train[2:]).err
    assert "Model name 'New Name' is not allowed" in refused(*story.update, "--name", "New Name").err


# Method and supervision


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ["Method 'wilson' learns from tags", "give --tags FILE"]),
        (("--tags", "TAGS", "--data", "DATA"), ["Method 'wilson' learns from tags", "it takes no --data"]),
        (
            ("--method", "ft", "--tags", "TAGS"),
            ["Method 'ft' learns from masks: 3 faults", "takes no --tags", "give --data DIR", "give --classes NEW"],
        ),
        (
            ("--method", "ft", "--data", "DATA", "--classes", "tres,boat"),
            ["Did you mean 'tree'?", "'boat' is a class of"],
        ),
        (("--method", "wilsn", "--tags", "TAGS"), ["Unknown method 'wilsn'. Did you mean 'wilson'? Methods: "]),
        (("--tags", "TAGS", "--config", "tyni"), ["Unknown preset 'tyni'."]),
        (("--tags", "TAGS", "--set", "update.epochs=3"), ["unknown key update.epochs"]),
        (
            ("--method", "wilson", "--tags", "TAGS", "--prior-masks", "DATA"),
            ["Method 'wilson' learns from tags", "it takes no --prior-masks; tags does"],
        ),
        (
            ("--method", "tags", "--tags", "TAGS", "--prior-masks", "DATA"),
            ["no PNG in it is named like one of the", "Name them like train_"],
        ),
        (("--dry-run",), ["--dry-run checks a tag list: give --tags FILE"]),
    ],
)
def test_what_a_method_learns_from(story: Story, refused: Refused, arguments: tuple[str, ...], says: list[str]) -> None:
    given = [{"DATA": str(story.scenes), "TAGS": str(story.tags)}.get(a, a) for a in arguments]
    message = refused("update", *given).err
    for text in says:
        assert text in message


# References and registries


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "shapes:9"), "There is no version shapes:9. Versions of shapes: 1, 2."),
        (("--from", "shape"), "There is no model 'shape' in the registry. Did you mean 'shapes'?"),
        (("--from", "shapes@prod"), "shapes has no alias 'prod'. It has: candidate, production."),
        (("--from", "sha256:0000"), "No version has a digest that starts with sha256:0000"),
        (("--registry", "nowhere"), "Run `cilseg demo` or `cilseg train` to make one, or name another with"),
        (("--registry", "FILE"), "is a file. Give a folder"),
    ],
)
def test_unknown_references(story: Story, refused: Refused, arguments: tuple[str, ...], says: str) -> None:
    given = [str(story.tags) if a == "FILE" else a for a in arguments]
    assert says in refused(*story.update, *given).err


def test_other_verbs_with_unknown_references(refused: Refused) -> None:
    for command in (("validate", "shapes:9"), ("export", "shapes:9"), ("show", "shapes:9"), ("promote", "shapes:9")):
        assert "There is no version shapes:9" in refused(*command).err
    assert "There is no version shapes:9" in refused("validate", "shapes:2", "--against", "shapes:9").err
    assert "There is no model 'shape'" in refused("rollback", "shape").err


def test_two_models_have_to_be_told_apart(story: Story, cilseg: Commands, registry: Path) -> None:
    held = Registry.open(registry)
    held.register("other", held.resolve("shapes:1").path)
    for command in (story.update, ("export",), ("predict", story.scenes, "-o", "out"), ("show",), ("rollback",)):
        answer = cilseg(*command)
        assert answer.code == 2
        assert "The registry holds several models (other, shapes); name one of them" in answer.err


def test_a_model_that_was_not_exported(story: Story, refused: Refused) -> None:
    message = refused("predict", story.scenes, "-o", "out", "--model", "shapes:2").err
    assert "shapes:2 has no exported model" in message
    assert "Make one with: cilseg export" in message


def test_an_unreadable_image_does_not_stop_prediction(story: Story, cilseg: Commands, registry: Path) -> None:
    assert registry.is_dir()
    folder = cilseg.cwd / "photos"
    folder.mkdir()
    shutil.copy(story.scenes / "images" / "val_00000.png", folder / "good.png")
    (folder / "bad.png").write_bytes(b"")
    answer = cilseg("predict", "photos", "-o", "out", "--json")
    assert answer.code == 1
    assert [Path(row["file"]).name for row in answer.json()["images"]] == ["good.png"]
    assert "skipped: photos/bad.png: the image file is empty" in answer.err


def test_export_to_a_place_that_is_not_there(refused: Refused) -> None:
    assert "needs to be a file in an existing folder" in refused("export", "-o", "nowhere/model.onnx").err


# Gate sets


@pytest.fixture
def with_gate(registry: Path, tmp_path: Path) -> Callable[[GateSet | None], None]:
    """Registers ``shapes:1`` again as ``moved:1`` with another gate set."""

    def register(gate_set: GateSet | None) -> None:
        held = Registry.open(registry)
        version = held.resolve("shapes:1")
        bundle = tmp_path / "bundle"
        shutil.copytree(version.path, bundle, ignore=shutil.ignore_patterns("attachments", MANIFEST))
        write_manifest(bundle, version.manifest.model_copy(update={"gate_set": gate_set}))
        held.register("moved", bundle)

    return register


def test_no_gate_set(story: Story, cilseg: Commands, registry: Path, with_gate: Callable[..., None]) -> None:
    assert registry.is_dir()
    with_gate(None)
    answer = cilseg("validate", "moved")
    assert answer.code == 2
    assert "moved:1 records no gate set. Give annotated images: cilseg validate moved:1 --data DIR" in answer.err
    assert cilseg("validate", "moved", "--data", story.scenes, "--quiet").code == 0
    answer = cilseg("export", "moved")
    assert answer.code == 2
    assert "--images a.jpg --images b.jpg" in answer.err


def test_a_gate_set_that_changed_or_went(
    cilseg: Commands, registry: Path, story: Story, data: Path, with_gate: Callable[..., None], contents: Contents
) -> None:
    gate_set = Registry.open(registry).resolve("shapes:1").manifest.gate_set
    assert gate_set is not None
    with_gate(gate_set.model_copy(update={"root": str(data)}))
    ids = (data / "val.txt").read_text().splitlines()
    (data / "val.txt").write_text("\n".join(ids[:-1]) + "\n")
    before = contents(registry)
    for command in (("validate", "moved"), (*story.update, "--from", "moved")):
        answer = cilseg(*command)
        assert answer.code == 2
        assert "lists other images than when the version was made. Restore its list file" in answer.err
        assert "cilseg validate REF --data DIR --split SPLIT" in answer.err
    assert "--no-gate" in answer.err
    shutil.rmtree(data)
    gone = cilseg(*story.update, "--from", "moved")
    assert gone.code == 2
    assert f"Data folder {data} does not exist" in gone.err
    assert contents(registry) == before
    unjudged = cilseg(*story.update, "--from", "moved", "--no-gate")
    assert unjudged.code == 0
    assert "moved:2 is registered and was not judged." in unjudged.out
    assert cilseg("promote", "moved:2").code == 3
