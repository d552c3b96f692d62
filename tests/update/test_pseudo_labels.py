"""Updates by two-stage methods keep their pseudo-labels, to be looked at; what points, replay and maps add."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from update_story import NEW, OLD, BaseStory, settings

from cilseg.classes import UNLABELLED_ID, default_palette
from cilseg.cli.main import app
from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg.methods.prototypes import PROTOTYPES
from cilseg.registry import Registry
from cilseg.update import UpdateRequest, update_version
from cilseg.update.bundle import PSEUDO_LABELS_FILE
from cilseg.update.material import gather
from cilseg.update.pseudo_labels import SHEET, extract_pseudo_labels
from cilseg_serve.images import encode_mask, read_mask

WEAK = [f"update.cam.weak.{key}" for key in ("epochs=2", "batch_size=4", "crop_px=64")] + ["update.cam.scales=[1.0]"]


@pytest.fixture(scope="module")
def told(base_story: BaseStory, tmp_path_factory) -> tuple[Registry, str]:
    """A registry with a version made by CAM, and its reference."""
    folder = tmp_path_factory.mktemp("cam")
    registry = base_story.copy(folder / "registry")
    tags = base_story.tag_list(folder / "tags.json")
    request = UpdateRequest(config=settings("cam", *WEAK), tags=tags, gate=False)
    return registry, update_version(registry, request).candidate.ref


def test_they_are_an_attachment(told):
    registry, ref = told
    version = registry.resolve(ref)
    assert PSEUDO_LABELS_FILE in registry.attachments(version)
    with zipfile.ZipFile(registry.attachment(version, PSEUDO_LABELS_FILE).path) as archive:
        names = archive.namelist()
    assert len(names) == 8
    assert all(name.endswith(".png") for name in names)


@pytest.mark.parametrize("with_images", [False, True])
def test_the_command_writes_labels_and_a_contact_sheet(told, base_story, tmp_path, with_images):
    registry, ref = told
    arguments = ["pseudo-labels", ref, "-o", str(tmp_path / "out"), "--registry", str(registry.root)]
    arguments += ["--image-root", str(base_story.scenes / "images")] if with_images else []
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    assert f"8 label images in {tmp_path / 'out'}" in result.stdout
    assert ("--image-root DIR adds images" in result.stdout) != with_images
    labels = [read_mask(f) for f in sorted((tmp_path / "out").glob("0*.png"))]
    assert len(labels) == 8
    assert {int(v) for mask in labels for v in mask.flat} <= {0, len(OLD) + 1, 255}
    sheet = np.asarray(Image.open(tmp_path / "out" / SHEET).convert("RGB"))
    assert min(sheet.shape[:2]) >= 100
    assert sheet.std() > 5  # not blank
    colours = len(np.unique(sheet.reshape(-1, 3), axis=0))
    assert colours > 50 if with_images else colours >= 2


def test_as_json(told, tmp_path):
    registry, ref = told
    result = CliRunner().invoke(
        app, ["pseudo-labels", ref, "-o", str(tmp_path), "--registry", str(registry.root), "--json"]
    )
    payload = json.loads(result.stdout)
    assert payload == {"folder": str(tmp_path), "labels": 8, "contact_sheet": str(tmp_path / SHEET)}


def test_a_version_without_any(told, tmp_path):
    registry, _ = told
    with pytest.raises(NotFoundError, match=r"'base' makes none\. Methods that keep them are tags, cam"):
        extract_pseudo_labels(registry, "shapes:1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder(told, tmp_path):
    registry, ref = told
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"is a file\. Give a folder"):
        extract_pseudo_labels(registry, ref, tmp_path / "out")


def test_a_folder_of_images_that_is_none_or_of_others(told, tmp_path):
    registry, ref = told
    with pytest.raises(InputError, match=r"nowhere is no folder\. Name the folder of the images"):
        extract_pseudo_labels(registry, ref, tmp_path / "out", image_root=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    (tmp_path / "others").mkdir()
    arguments = ["pseudo-labels", ref, "-o", str(tmp_path / "out"), "--registry", str(registry.root)]
    result = CliRunner().invoke(app, [*arguments, "--image-root", str(tmp_path / "others")])
    assert f"(labels alone; none of their images is in {tmp_path / 'others'})" in result.stdout


def test_a_damaged_attachment(told, tmp_path):
    registry, ref = told
    copy = Registry.open(shutil.copytree(registry.root, tmp_path / "copy"))
    path = copy.attachment(copy.resolve(ref), PSEUDO_LABELS_FILE).path
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtifactError):
        extract_pseudo_labels(copy, ref, tmp_path / "out")


def test_the_sheet_leaves_out_images_without_labels(told, tmp_path):
    registry, ref = told
    copy = Registry.open(shutil.copytree(registry.root, tmp_path / "copy"))
    masks = [np.full((64, 64), UNLABELLED_ID, np.uint8) for _ in range(12)]
    for mask in masks[3:5]:
        mask[10:50, 10:50] = len(OLD) + 1
    labels = io.BytesIO()
    with zipfile.ZipFile(labels, "w") as archive:
        for k, mask in enumerate(masks):
            archive.writestr(f"{k:05d}-x.png", encode_mask(mask, default_palette(len(OLD) + 2)))
    copy.attach(copy.resolve(ref), PSEUDO_LABELS_FILE, labels.getvalue(), kind="pseudo-labels")
    sheet = Image.open(extract_pseudo_labels(copy, ref, tmp_path / "out").sheet)
    assert sheet.size == (320, 160)


def test_a_base_version_holds_prototypes_that_sdr_hands_on(base_story, registry):
    assert (registry.resolve("shapes:1").path / PROTOTYPES).is_file()
    request = UpdateRequest(config=settings("sdr"), data=base_story.scenes, classes=(NEW,), gate=False)
    candidate = update_version(registry, request).candidate
    assert (candidate.path / PROTOTYPES).is_file()
    assert PROTOTYPES in candidate.manifest.files


def test_recall_from_a_folder_of_images(base_story, registry, tmp_path):
    request = UpdateRequest(
        config=settings("recall"),
        data=base_story.scenes,
        classes=(NEW,),
        replay=base_story.replay(tmp_path / "replay"),
        gate=False,
    )
    candidate = update_version(registry, request).candidate
    assert "helper_step1.safetensors" in candidate.manifest.files
    assert len(candidate.manifest.class_set) == len(OLD) + 2


def test_pifs_learns_from_the_first_shots_alone(base_story, registry):
    from cilseg.update import BaseRequest, train_version

    config = settings("pifs", "model.classifier=cosine")
    base = train_version(registry, BaseRequest("cosine", base_story.scenes, config, classes=OLD, gate_split=None))
    request = UpdateRequest(
        config=config.model_copy(
            update={
                "update": config.update.model_copy(
                    update={"optimiser": config.update.optimiser.model_copy(update={"freeze_norm": True})}
                )
            }
        ),
        parent=base.ref,
        data=base_story.scenes,
        classes=(NEW,),
        shots=2,
        gate=False,
    )
    candidate = update_version(registry, request).candidate
    assert candidate.manifest.data["images"] == 2
    assert candidate.manifest.architecture.classifier == "cosine"


@pytest.mark.parametrize("kind", ["points", "scribbles"])
def test_points_and_scribbles_of_a_tag_list(base_story, registry, tmp_path, kind):
    images = tmp_path / "images"
    shutil.copytree(base_story.scenes / "images", images)
    index, (x, y) = base_story.first_with(NEW)
    drawn = np.full((64, 64), 255, np.uint8)
    drawn[y, x:] = 1
    drawn[0] = 0
    Image.fromarray(drawn).save(images / "drawn.png")
    row = {"points": [[x, y, NEW], [0, 0, "background"]], "scribble": "drawn.png"}
    tags = base_story.tag_list(tmp_path / "tags.json", image_root=images, **{f"image{index}": row})
    result = update_version(registry, UpdateRequest(config=settings(f"mib-{kind}"), tags=tags, gate=False))
    assert result.candidate.manifest.method == f"mib-{kind}"
    assert result.candidate.manifest.class_set.names[-1] == NEW


def test_saliency_maps_of_a_folder_where_images_are_resized(base_story, tmp_path):
    """The network sees images at its own size; the maps have to follow."""
    from cilseg.update import BaseRequest, train_version

    registry = Registry.open(tmp_path / "registry")
    eps = [text.replace("cam", "eps") for text in WEAK]
    config = settings("eps", "model.short_side_px=48", *eps)
    train_version(registry, BaseRequest("small", base_story.scenes, config, classes=OLD, gate_split=None))
    maps = tmp_path / "maps"
    maps.mkdir()
    for file in base_story.source.image_paths:
        Image.open(file).convert("L").save(maps / f"{file.stem}.png")
    tags = base_story.tag_list(tmp_path / "tags.json")
    request = UpdateRequest(config=config, tags=tags, saliency=str(maps), gate=False)
    material = gather(registry.resolve("small"), request)
    for index in (0, 5):
        image, saliency = material.data.read_image(index), material.inputs.saliency(index)
        assert saliency.shape == image.shape[:2] == (48, 48)
        assert np.abs(saliency - image.mean(axis=2)).mean() < 25  # the grey picture of the image itself
    result = update_version(registry, request)
    assert PSEUDO_LABELS_FILE in registry.attachments(result.candidate)
    with zipfile.ZipFile(registry.attachment(result.candidate, PSEUDO_LABELS_FILE).path) as archive:
        archive.extractall(tmp_path / "out")
    assert {read_mask(f).shape for f in (tmp_path / "out").iterdir()} == {(48, 48)}


def test_priors_beside_tags(base_story, registry, tmp_path):
    """The method tags labels with them, and a prior need not be there."""
    index, _ = base_story.first_with(NEW)
    tags = base_story.tag_list(tmp_path / "tags.json")
    file = base_story.source.image_paths[index]
    (tmp_path / "priors").mkdir()
    values = np.zeros((64, 64), np.uint8)
    values[:, 32:] = 200
    Image.fromarray(values).save(tmp_path / "priors" / f"{file.stem}.png")
    config = settings("tags", "update.tags.prior_weight=1")
    request = UpdateRequest(config=config, tags=tags, prior_masks=str(tmp_path / "priors"), gate=False)
    inputs = gather(registry.resolve("shapes"), request).inputs
    assert np.array_equal(inputs.prior(index), values[..., None])
    assert inputs.prior(index - 1 if index else 1) is None
    result = update_version(registry, request)
    with zipfile.ZipFile(registry.attachment(result.candidate, PSEUDO_LABELS_FILE).path) as archive:
        archive.extractall(tmp_path / "out")
    label = read_mask(next((tmp_path / "out").rglob(f"*{file.stem}.png")))
    assert set(label[:, :30].flat) <= {254, 255}
