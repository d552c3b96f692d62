"""The default method: labels where tags allow them, batches that hold both kinds of images, stored images, refining."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from tiny_step import (
    CLASSES,
    OLD,
    OPTIMISER,
    RUNTIME,
    class_set,
    data_for,
    differing,
    inputs_for,
    state_of,
    take_step,
    update_config,
)

from cilseg.classes import UNLABELLED_ID, VOID_ID
from cilseg.config import load_config
from cilseg.data.labels import map_mask
from cilseg.errors import InputError
from cilseg.methods import METHODS, Memory, StepContext
from cilseg.methods.base import Stage
from cilseg.methods.look_alikes import rarely_seen
from cilseg.methods.tags import CONFIDENCE, LOOK_ALIKES
from cilseg.methods.two_stage import PSEUDO_LABELS
from cilseg.train.dataset import TrainingSet
from cilseg.train.steps import read_prepared
from cilseg_serve.images import read_mask

NEW_ID = len(OLD) + 1
SOFT = {"claim_from": 0.2, "alpha": 0.5, "unsure_from": None}
"""Labels that tell how sure they are."""


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    data = data_for(world, "tags")
    return folder, data, take_step(world, "tags", folder, data=data, config=update_config("tags", **SOFT))


def test_labels_claim_tagged_classes_in_tagged_images_alone(run):
    folder, data, _ = run
    tagged = data.tags[:, NEW_ID - 1] > 0
    assert 0 < tagged.sum() < data.size
    found = 0
    for index in range(data.size):
        label, sure = (read_mask(folder / kind / f"{data.name(index)}.png") for kind in (PSEUDO_LABELS, CONFIDENCE))
        assert label.shape == sure.shape == data.read_image(index).shape[:2]
        assert set(label.flat) <= ({NEW_ID, UNLABELLED_ID} if tagged[index] else {UNLABELLED_ID})
        assert (sure[label == UNLABELLED_ID] == 0).all()
        assert (sure[label == NEW_ID] > 127).all()  # alpha and the share on top
        found += int((label == NEW_ID).sum())
    assert found > 0


def test_what_may_show_a_new_class_is_left_out(world, run, tmp_path):
    _, data, _ = run

    def labels(name, **options):
        take_step(world, "tags", tmp_path / name, data=data, config=update_config("tags", **options))
        return [
            tuple(read_mask(tmp_path / name / kind / f"{data.name(i)}.png") for kind in (PSEUDO_LABELS, CONFIDENCE))
            for i in range(data.size)
        ]

    soft = labels("soft", claim_from=0.01, alpha=0.0, unsure_from=None)  # every share as it is
    assert all(set(label.flat) <= {NEW_ID, UNLABELLED_ID} for label, _ in soft)
    shares = np.concatenate([sure[label == NEW_ID] for label, sure in soft]) / 255
    low, high = (float(np.quantile(shares, q)) for q in (0.3, 0.6))
    seen = set()
    for (_, share), (label, sure) in zip(soft, labels("band", claim_from=high, unsure_from=low), strict=True):
        wanted = np.where(share / 255 > high, NEW_ID, np.where(share / 255 > low, VOID_ID, UNLABELLED_ID))
        clear = np.minimum(abs(share / 255 - high), abs(share / 255 - low)) > 0.003  # no matter how it was rounded
        assert np.array_equal(label[clear], wanted[clear])
        assert np.array_equal(sure, np.where(label == NEW_ID, 255, 0))
        seen |= set(label.flat)
    assert seen == {NEW_ID, VOID_ID, UNLABELLED_ID}


def test_labels_that_are_there_are_taken_as_they_are(world, run, tmp_path):
    folder, data, usual = run
    for kind in (PSEUDO_LABELS, CONFIDENCE):
        (tmp_path / kind).mkdir()
        for file in (folder / kind).iterdir():
            (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    config = update_config("tags", claim_from=0.9)  # would make other labels
    again = take_step(world, "tags", tmp_path, data=data, config=config)
    assert not differing(state_of(again), state_of(usual))


def method_on(world, name, **options):
    context = StepContext(
        world.parent_of(name).extended(1),
        world.parent_of(name),
        update_config(name, **options),
        inputs_for(world, name),
    )
    return METHODS[name](context)


def test_half_of_every_batch_shows_no_new_class_and_every_image_comes_round(world):
    data = data_for(world, "masks")
    shows = [i in (1, 5) for i in range(data.size)]
    balanced = method_on(world, "masks").balanced(data, shows)
    batches = [balanced.batch_indices(epoch, 4) for epoch in range(8)]
    assert [len(epoch) for epoch in batches] == [2] * 8
    for batch in (batch for epoch in batches for batch in epoch):
        assert sum(shows[i] for i in batch) == 2
    assert {i for epoch in batches for batch in epoch for i in batch} == set(range(data.size))
    assert batches == [balanced.batch_indices(epoch, 4) for epoch in range(8)]
    as_they_come = method_on(world, "masks", negative_share=None).balanced(data, shows)
    assert as_they_come is data


def stored(world, rows):
    """Stored images whose masks know the base classes."""
    source, classes = world.source.subset(world.source.ids[-rows:]), class_set([])

    def mask(index):
        return map_mask(source.mask(index), source.label_names, classes, visible=OLD)

    return Memory(rows, partial(read_prepared, source.image_paths, None), mask, 1 + len(OLD))


@pytest.mark.parametrize("name", ["tags", "masks"])
def test_stored_images_are_trained_on_unless_told_otherwise(world, tmp_path, name):
    memory = stored(world, 3)
    without = take_step(world, name, tmp_path / "without")
    used = take_step(world, name, tmp_path / "used", inputs=inputs_for(world, name, memory=memory))
    assert differing(state_of(used), state_of(without))
    noise = Memory(3, memory.read_image, lambda i: (memory.read_mask(i) + 1) % 3, memory.n_channels)
    other = take_step(world, name, tmp_path / "noise", inputs=inputs_for(world, name, memory=noise))
    assert differing(state_of(other), state_of(used))  # their masks are read
    config = update_config(name, memory=False)
    unused = take_step(world, name, tmp_path / "unused", inputs=inputs_for(world, name, memory=memory), config=config)
    assert not differing(state_of(unused), state_of(without))


class TestRareOldClasses:
    """Old classes that no image without a new class shows are named before anything is trained."""

    def test_what_the_parent_sees_in_few_images(self):
        class Parent(torch.nn.Module):
            n_classes = 4

            def forward(self, image):
                """The grey of a pixel is its class."""
                return torch.nn.functional.one_hot(image[:, 0].long(), 4).movedim(-1, 1).float()

        images = np.zeros((6, 50, 50, 3), np.uint8)
        images[:4, :10], images[3:, 20:30, :10], images[2:4, -1, :] = 1, 2, 3  # 3: two images, 2 % of each
        data = TrainingSet(6, lambda index: images[index], transform=None, seed=0)
        stage = Stage(None, 0, torch.device("cpu"), contextlib.nullcontext, None)
        assert rarely_seen(Parent(), data, range(6), stage) == [3]
        assert rarely_seen(Parent(), data, range(5), stage) == [2, 3]
        assert rarely_seen(Parent(), data, [], stage) == [1, 2, 3]

    @pytest.fixture
    def told(self, world, tmp_path, caplog):
        """Return the warnings of a step in which so many images show no new class."""

        def of(count):
            data = data_for(world, "tags")
            tags = data.tags.copy()
            tags[:, NEW_ID - 1] = 1
            tags[:count, NEW_ID - 1] = 0
            inputs = inputs_for(world, "tags", class_names=("background", *CLASSES[:3]))
            with caplog.at_level(logging.WARNING, logger="cilseg.methods.look_alikes"):
                take_step(world, "tags", tmp_path, data=data.changed(tags=tags), inputs=inputs)
            return [record.getMessage() for record in caplog.records]

        return of

    def test_they_are_named(self, told):
        assert told(3) == [
            f"The parent sees {OLD[1]} in fewer than 3 of the 3 images that show no new class; where a new class looks "
            "alike, that may cost the old one much. Add images that show it and no new class: "
            "--negatives DIR."
        ]


class TestFewImagesWithoutNewClasses:
    """Then a second round would take what looks alike for new classes, so there is none."""

    @staticmethod
    def data(world, lacking, *, state=0):
        data = data_for(world, "tags")
        tags = data.tags.copy()
        tags[:, NEW_ID - 1] = 1
        tags[:lacking, NEW_ID - 1] = state
        return data.changed(tags=tags)

    @pytest.mark.parametrize("lacking", [0, 2])
    def test_the_step_is_wilsons(self, world, tmp_path, caplog, lacking):
        data, ticks = self.data(world, lacking), []
        with caplog.at_level(logging.WARNING, logger="cilseg.methods.look_alikes"):
            take_step(world, "tags", tmp_path, data=data, on_tick=ticks.append)
        assert [record.getMessage() for record in caplog.records] == [
            f"{lacking} images show no new class, fewer than 3, so nothing tells old classes from new ones. This "
            "trains WILSON's losses in one round, slowly: old classes are mostly kept, new ones learned far less well. "
            "Add images that show old classes and no new one: --negatives DIR."
        ]
        assert not (tmp_path / PSEUDO_LABELS).exists()
        assert len(ticks) == OPTIMISER.epochs * data.iterations(OPTIMISER.batch_size)
        assert {tuple(tick.losses) for tick in ticks} == {("loss", "cls", "loc", "enc", "seg", "sss")}
        assert ticks[0].lr == pytest.approx(OPTIMISER.lr_body / 5)

    def test_a_killed_step_goes_on_as_it_would_have(self, world, tmp_path):
        data = self.data(world, 1)
        whole = take_step(world, "tags", tmp_path / "whole", data=data)

        def stop(tick):
            if tick.iteration == 3:
                raise KeyboardInterrupt

        often = RUNTIME.model_copy(update={"checkpoint_every_s": 0.0})
        with pytest.raises(KeyboardInterrupt):
            take_step(world, "tags", tmp_path / "run", data=data, runtime=often, on_tick=stop)
        resumed = take_step(world, "tags", tmp_path / "run", data=data, runtime=often, resume=True)
        assert differing(state_of(whole), state_of(resumed)) == []

    def test_stored_images_stand_in(self, world, tmp_path):
        inputs = inputs_for(world, "tags", memory=stored(world, 4))
        take_step(world, "tags", tmp_path, data=self.data(world, 0), inputs=inputs)
        assert (tmp_path / PSEUDO_LABELS).is_dir()

    def test_what_nobody_said_is_no_absence(self, world, tmp_path, caplog):
        with caplog.at_level(logging.WARNING, logger="cilseg.methods.look_alikes"):
            take_step(world, "tags", tmp_path, data=self.data(world, 6, state=-1))
        assert caplog.records[0].getMessage().startswith("0 images show no new class")


def test_images_that_nobody_tagged_are_left_out(world, tmp_path):
    data = data_for(world, "tags")
    tags = data.tags.copy()
    tags[:, NEW_ID - 1] = [1, 0, 1, 0, 1, 0, -1, -1]
    take_step(world, "tags", tmp_path, data=data.changed(tags=tags))
    for index in range(data.size):
        label = read_mask(tmp_path / PSEUDO_LABELS / f"{data.name(index)}.png")
        assert (label == VOID_ID).all() == (index >= 6)
    balanced = method_on(world, "tags").balanced(data, [True, False, True, False, True, False, None, None])
    assert {i for epoch in range(8) for batch in balanced.batch_indices(epoch, 4) for i in batch} == set(range(6))


def test_look_alikes_are_told(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="cilseg.methods.tags"):
        take_step(world, "tags", tmp_path / "a")
        take_step(world, "tags", tmp_path / "b", config=update_config("tags", look_alikes=False))
    lines = [record.getMessage() for record in caplog.records if "Look-alikes" in record.getMessage()]
    assert len(lines) == 1


class TestLookAlikeWeights:
    """Similarities that are told, in place of those that are measured."""

    NAMES = ("background", *CLASSES[:3])

    @staticmethod
    def files(folder):
        """Contents of all labels and confidences."""
        return [file.read_bytes() for kind in (PSEUDO_LABELS, CONFIDENCE) for file in sorted((folder / kind).iterdir())]

    @pytest.fixture
    def step(self, world, run, tmp_path):
        """Take the step of ``run`` with other options; return the model and what :meth:`files` returns."""
        _, data, _ = run

        def of(**options):
            config = update_config("tags", **SOFT, **options)
            inputs = inputs_for(world, "tags", class_names=self.NAMES)
            model = take_step(world, "tags", tmp_path, data=data, config=config, inputs=inputs)
            return state_of(model), self.files(tmp_path)

        return of

    def test_what_was_measured_can_be_supplied_as_it_is(self, run, step, tmp_path):
        _, _, usual = run
        measured, labels = step()
        assert not differing(measured, state_of(usual))
        text = (tmp_path / LOOK_ALIKES).read_text()
        weights = json.loads(text)
        assert list(weights) == [CLASSES[2]]
        assert list(weights[CLASSES[2]]) == list(OLD)
        assert all(0 <= weight <= 1 for weight in weights[CLASSES[2]].values())
        for kind in (PSEUDO_LABELS, CONFIDENCE, "first"):
            shutil.rmtree(tmp_path / kind)
        setting = f"update.tags.look_alike_weights={text}"
        section = load_config(None, [setting], check_methods=True).update.model_extra["tags"]
        assert section == {"look_alike_weights": weights}
        supplied, again = step(**section)
        assert again == labels
        assert not differing(supplied, measured)
        assert (tmp_path / LOOK_ALIKES).read_text() == text

    def test_what_is_left_out_has_no_weight(self, run, step, tmp_path):
        folder, _, _ = run
        _, labels = step(look_alike_weights={CLASSES[2]: {OLD[1]: 1.0}})
        assert json.loads((tmp_path / LOOK_ALIKES).read_text()) == {CLASSES[2]: {OLD[0]: 0.0, OLD[1]: 1.0}}
        assert labels != self.files(folder)

    def test_without_names_classes_go_by_their_numbers(self, run):
        folder, _, _ = run
        assert list(json.loads((folder / LOOK_ALIKES).read_text())[str(NEW_ID)]) == ["1", "2"]

    def test_names_that_are_none_are_refused_together(self, step, tmp_path):
        typo = OLD[0][:-1]
        with pytest.raises(InputError) as caught:
            step(look_alike_weights={CLASSES[2]: {typo: 0.5, "background": 1.0}, OLD[1]: {}})
        message = str(caught.value)
        assert "update.tags.look_alike_weights: 3 faults" in message
        assert f"{typo!r}, under {CLASSES[2]!r}, is no old class. Did you mean {OLD[0]!r}?" in message
        assert f"'background', under {CLASSES[2]!r}, is no old class." in message
        assert f"{OLD[1]!r} is no new class of this step." in message
        assert f"New: {CLASSES[2]}. Old: {OLD[0]}, {OLD[1]}. With null the weights are measured." in message
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("weight", [-0.1, 1.5, "much"])
    def test_weights_that_are_none_are_refused(self, weight):
        where = f"update.tags.look_alike_weights.{CLASSES[2]}.{OLD[0]}"
        with pytest.raises(InputError, match=f"{where}: .* \\(got {weight!r}\\)"):
            load_config(None, [f"{where}={weight}"], check_methods=True)

    def test_weights_without_their_use_are_refused(self, step):
        with pytest.raises(InputError, match="set look_alikes to true, or look_alike_weights to null"):
            step(look_alikes=False, look_alike_weights={})


def test_masks_of_other_classes_than_new_ones_are_the_old_models(world):
    """A mask of the step marks new classes; its background is not taken for background."""
    data = data_for(world, "masks", new=CLASSES[2:3])
    method = method_on(world, "masks")
    prepared = method.prepare(data, None)
    for index in range(data.size):
        before, after = data.read_mask(index), prepared.read_mask(index)
        assert np.array_equal(after == NEW_ID, before == NEW_ID)
        assert set(after[before == 0].flat) <= {UNLABELLED_ID}


class TestHints:
    """Priors, against the run without any."""

    @pytest.fixture
    def labels(self, world, run, tmp_path):
        """Return labels and confidences of every image after a step with these inputs, and those without them."""
        folder, data, _ = run

        def of(options=None, **inputs):
            config = update_config("tags", **SOFT, **(options or {}))
            take_step(world, "tags", tmp_path, data=data, config=config, inputs=inputs_for(world, "tags", **inputs))
            return tuple(
                [[read_mask(f / kind / f"{data.name(i)}.png") for kind in (PSEUDO_LABELS, CONFIDENCE)] for i in rows]
                for f in (tmp_path, folder)
                for rows in [range(data.size)]
            )

        return of

    @staticmethod
    def same(ours, theirs):
        return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_a_prior_of_full_weight_forbids_and_images_without_one_stay(self, run, labels):
        _, data, _ = run
        tagged = np.flatnonzero(data.tags[:, NEW_ID - 1] > 0)
        assert len(tagged) > 1
        half = np.zeros((64, 64, 1), np.uint8)
        half[:, 32:] = 255
        with_prior, without = labels({"prior_weight": 1.0}, prior=lambda i: half if i == tagged[0] else None)
        assert (with_prior[tagged[0]][0][:, :30] == UNLABELLED_ID).all()
        assert (without[tagged[0]][0][:, :30] == NEW_ID).any()
        assert all(self.same(with_prior[i], without[i]) for i in range(data.size) if i != tagged[0])
