"""CAM, SEAM, SS, EPS: pseudo-labels that one can look at, and stage 2 that learns from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_step import CLASSES, OLD, data_for, differing, inputs_for, state_of, take_step, update_config

from cilseg.errors import InputError
from cilseg.methods import METHODS, StepInputs
from cilseg.methods.cam import CamNetwork
from cilseg.methods.seam import AffinityNetwork
from cilseg.methods.two_stage import PSEUDO_LABELS, TwoStage, TwoStageOptions
from cilseg_serve.images import read_mask

NEW_ID = len(OLD) + 1
TWO_STAGE = [name for name, method in METHODS.items() if issubclass(method, TwoStage)]
AFFINITY = {"random_walk": True, "radius": 2, "affinity": {"epochs": 1, "batch_size": 4, "crop_px": 64}}


@pytest.fixture(scope="module", params=[*TWO_STAGE, "seam+walk"])
def run(request, world, tmp_path_factory):
    """Run folder of one step, and the data it was given."""
    name, _, walk = request.param.partition("+")
    folder = tmp_path_factory.mktemp(name)
    data = data_for(world, name)
    take_step(world, name, folder, data=data, config=update_config(name, **(AFFINITY if walk else {})))
    return folder, data


def test_which_methods_have_two_stages():
    assert set(TWO_STAGE) == {"cam", "seam", "ss", "eps"}
    assert all(METHODS[name].supervision == "tags" for name in TWO_STAGE)


def test_one_label_image_per_training_image(run):
    folder, data = run
    files = sorted((folder / PSEUDO_LABELS).iterdir())
    assert [f.name for f in files] == [f"{i:05d}-{data.names[i]}.png" for i in range(data.size)]
    masks = [read_mask(file) for file in files]
    tagged = data.tags[:, NEW_ID - 1] > 0
    assert 0 < tagged.sum() < data.size
    for index, mask in enumerate(masks):
        assert mask.shape == data.read_image(index).shape[:2]
        assert set(mask.flat) <= ({0, NEW_ID, 255} if tagged[index] else {0})
    if folder.name.startswith("cam"):  # one epoch is too short for the others to find something
        assert any((masks[i] == NEW_ID).any() for i in np.flatnonzero(tagged))


def test_labels_that_are_there_are_taken_as_they_are(world, tmp_path):
    """What stage 2 learns from are the files."""
    usual = take_step(world, "cam", tmp_path / "usual")
    folder = tmp_path / "edited" / PSEUDO_LABELS
    folder.mkdir(parents=True)
    for file in (tmp_path / "usual" / PSEUDO_LABELS).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    same = take_step(world, "cam", tmp_path / "edited")
    assert not differing(state_of(same), state_of(usual))
    from cilseg_serve.images import write_mask

    for file in folder.iterdir():
        mask = read_mask(file)
        write_mask(file, np.where(mask == 0, NEW_ID, 0).astype(np.uint8), np.zeros((4, 3), np.uint8))
    other = take_step(world, "cam", tmp_path / "edited")
    assert differing(state_of(other), state_of(usual))


def test_the_random_walk_labels_every_tagged_image(world, tmp_path, monkeypatch):
    walked = []
    original = AffinityNetwork.walk

    def walk(self, maps, image):
        labels = original(self, maps, image)
        walked.append((maps, labels))
        return labels

    monkeypatch.setattr(AffinityNetwork, "walk", walk)
    data = data_for(world, "seam")
    take_step(world, "seam", tmp_path, data=data, config=update_config("seam", **AFFINITY))
    assert (tmp_path / "affinity" / "log.jsonl").is_file()
    assert len(list((tmp_path / "sure_labels").iterdir())) == data.size
    tagged = np.flatnonzero(data.tags[:, NEW_ID - 1] > 0)
    files = sorted((tmp_path / PSEUDO_LABELS).iterdir())
    assert len(walked) == len(tagged)
    for (maps, labels), index in zip(walked, tagged, strict=True):
        assert maps.shape == (1, 1, 64, 64)
        assert maps.max() <= 1
        written = read_mask(files[index])
        assert ((written == NEW_ID) == (labels.numpy() == 1)).all()


class TestEps:
    def test_without_saliency_it_does_not_start(self, world, tmp_path):
        with pytest.raises(InputError, match="give --saliency DIR, or --saliency builtin") as caught:
            take_step(world, "eps", tmp_path, inputs=StepInputs())
        assert "use cam or wilson" in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_maps_of_the_user_are_used(self, world, tmp_path):
        losses = []
        for name, value in (("nothing", 0), ("everything", 255), ("builtin", None)):
            maps = [np.full((64, 64), value or 0, np.uint8)] * 8
            saliency = "builtin" if value is None else maps.__getitem__
            take_step(world, "eps", tmp_path / name, inputs=inputs_for(world, "eps", saliency=saliency))
            first = json.loads((tmp_path / name / "weak" / "log.jsonl").read_text().splitlines()[0])
            losses.append(first["loss"])
        assert len(set(losses)) == 3

    def test_maps_are_cut_as_the_images_are(self, world):
        """Saliency that is the image's own red channel stays beside it in every crop."""
        data = data_for(world, "eps")
        data = data.changed(read_saliency=lambda i: np.ascontiguousarray(data.read_image(i)[..., 0]))
        batch = data.collate(1, [0, 3])
        assert batch["saliency"].shape == (2, 64, 64)
        near = (batch["saliency"].float() - batch["image"][:, 0].float()).abs()
        assert near.median() <= 4


def test_the_weak_network_leaves_the_parent_alone(world, tmp_path):
    before = state_of(world.parents["linear"])
    take_step(world, "ss", tmp_path)
    assert not differing(state_of(world.parents["linear"]), before)
    assert (tmp_path / "weak" / "log.jsonl").is_file()


def test_tags_alone_reach_the_two_stages(world, tmp_path):
    """Two methods that got the same tags differ by their pseudo-labels alone: no mask was there to read."""
    for name in ("cam", "eps"):
        data = data_for(world, name)
        assert data.read_mask is None
        take_step(world, name, tmp_path / name, data=data)
        assert data.read_mask is None  # the set that was given stays as it was


def test_several_new_classes_have_their_own_ids(world, tmp_path):
    data = data_for(world, "cam", new=CLASSES[2:])
    take_step(world, "cam", tmp_path, data=data, n_new=2)
    for index, file in enumerate(sorted((tmp_path / PSEUDO_LABELS).iterdir())):
        allowed = {NEW_ID + k for k in (0, 1) if data.tags[index, NEW_ID - 1 + k] > 0}
        assert set(read_mask(file).flat) <= allowed | {0, 255}
    weak = CamNetwork(world.parents["linear"], TwoStageOptions(), n_new=2)
    assert weak.channel_ids(torch.tensor([[0, 1, 2, 255]])).tolist() == [[0, NEW_ID, NEW_ID + 1, 255]]
