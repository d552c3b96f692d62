"""Early stopping from tags: which images are kept out, when training ends, whose weights remain, also after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_step import (
    CLASSES,
    OLD,
    OPTIMISER,
    RUNTIME,
    World,
    data_for,
    differing,
    inputs_for,
    state_of,
    take_step,
    update_config,
)

from cilseg.errors import InputError
from cilseg.methods import METHODS, StepContext
from cilseg.methods.early_stopping import BestEpoch, held_out, tag_score
from cilseg.methods.tags import CONFIDENCE, EARLY_STOPPING
from cilseg.methods.two_stage import PSEUDO_LABELS
from cilseg.train.engine import Tick
from cilseg_serve.images import read_mask

N_OLD = len(OLD)
OFTEN = RUNTIME.model_copy(update={"checkpoint_every_s": 0.0})


def states(present: int, absent: int, unknown: int = 0) -> np.ndarray:
    return np.repeat(np.array([1, 0, -1], np.int8), (present, absent, unknown))


class TestHeldOut:
    def test_a_tenth_of_either_kind_of_each_class(self):
        rng = np.random.default_rng(0)
        tags = np.stack([rng.permutation(states(60, 100, 40)), rng.permutation(states(20, 180))], axis=1)
        rows = held_out(tags, ["cow", "sheep"], seed=1)
        assert rows == sorted(set(rows))
        for column, counts in zip(tags.T, [(6, 10), (2, 18)], strict=True):
            for state, least in zip((1, 0), counts, strict=True):
                assert least <= (column[rows] == state).sum() <= least + 10  # one class's images are the other's too
        assert held_out(tags, ["cow", "sheep"], seed=1) == rows != held_out(tags, ["cow", "sheep"], seed=2)

    def test_few_images(self):
        assert len(held_out(states(2, 2)[:, None], ["cow"], seed=0)) == 2

    def test_too_few_images_are_refused_in_words(self):
        tags = np.stack([states(1, 9), states(5, 5), states(4, 1, 5)], axis=1)
        with pytest.raises(InputError) as caught:
            held_out(tags, ["cow", "cat", "sheep"], seed=0)
        text = str(caught.value)
        assert "update.tags.stop_early keeps images out of training, to judge by: 2 faults" in text
        assert "new class 'cow' has 1 images tagged present and 9 tagged absent, too few" in text
        assert "new class 'sheep' has 4 images tagged present and 1 tagged absent, too few" in text
        assert "at least two of each kind for each class, or set it to null" in text


@pytest.mark.parametrize(
    ("scores", "ended", "best"),
    [
        ([0.5, 0.6, 0.55, 0.58], 4, 1),
        ([0.6, 0.5, 0.61, 0.6, 0.6], 5, 2),
        ([0.9, 1.0, 1.0, 1.0, 1.0, 1.0], None, 5),  # what cannot rise any more ends nothing
        ([0.9, 0.8, 0.9, 0.7, 0.9, 0.95], None, 5),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], None, 5),
    ],
)
def test_the_rule(scores, ended, best):
    model = torch.nn.Linear(1, 1)
    kept = BestEpoch(model, epochs=6, patience=2)
    answers = []
    for epoch, score in enumerate(scores):
        with torch.no_grad():
            model.weight.fill_(epoch)
        answers.append(kept.add(model, epoch, score))
    assert answers == [ended is not None and epoch == ended - 1 for epoch in range(len(scores))]
    assert kept.epoch == best == kept.model.weight.item()
    assert kept.told() == {"scores": pytest.approx(scores), "best_epoch": best + 1}
    assert not any(p.requires_grad for p in kept.parameters())


def test_the_score_is_high_for_tags_that_the_model_agrees_with(world):
    model, images = world.parents["linear"], data_for(world, "tags").read_image
    rows = list(range(8))
    modes = [module.training for module in model.modules()]
    with torch.inference_mode():
        logits = [model(torch.from_numpy(images(i).copy()).permute(2, 0, 1)[None]) for i in rows]
    highest = np.array([float(model.upsample(z, 64, 64).softmax(dim=1)[:, -1].amax()) for z in logits])
    agreed = (highest > np.median(highest)).astype(np.int8)[:, None]
    assert tag_score(model, images, rows, agreed) == 1.0
    assert tag_score(model, images, rows, 1 - agreed) < 0.7
    unknown = agreed.copy()
    unknown[0], unknown[1] = -1, -1
    assert tag_score(model, images, rows, unknown) == 1.0
    assert [module.training for module in model.modules()] == modes


def stopping(**options):
    return update_config("tags", optimiser=OPTIMISER.model_copy(update={"epochs": 5}), stop_early=1, **options)


def step(world: World, folder: Path, **changes):
    return take_step(world, "tags", folder, data=data_for(world, "tags", images=12), config=stopping(), **changes)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    ticks: list[Tick] = []
    model = step(world, folder, on_tick=ticks.append)
    return folder, model, ticks


def iterations_of(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_weights_of_the_best_epoch_are_returned(world, run):
    folder, model, _ = run
    told = json.loads((folder / EARLY_STOPPING).read_text())
    data = data_for(world, "tags", images=12)
    new = data.tags[:, N_OLD:]
    rows = held_out(new, CLASSES[2:3], seed=data.seed)
    best = told["best_epoch"] - 1
    assert told["scores"][best] == max(told["scores"])
    assert tag_score(model, data.read_image, rows, new[rows]) == pytest.approx(told["scores"][best], abs=1e-4)
    saved = load_file(folder / "resume.safetensors")
    found = state_of(model)
    assert not differing({key: saved[f"model.best.model.{key}"] for key in found}, found)
    assert bool(differing({key: saved[f"model.model.{key}"] for key in found}, found)) == (
        best < len(told["scores"]) - 1
    )
    epochs = len(told["scores"])
    assert epochs == min(best + 2, 5)
    per_epoch = len(iterations_of(folder)) / epochs
    assert per_epoch == (12 - len(rows)) // 4


def test_images_kept_out_are_labelled_but_not_trained_on(world, run):
    folder, _, _ = run
    data = data_for(world, "tags", images=12)
    rows = held_out(data.tags[:, N_OLD:], CLASSES[2:3], seed=data.seed)
    assert len(list((folder / PSEUDO_LABELS).iterdir())) == 12
    context = StepContext(
        world.parents["linear"].extended(1), world.parents["linear"], stopping(), inputs_for(world, "tags")
    )
    method = METHODS["tags"](context)
    stage = type("Stage", (), {"run_dir": folder, "autocast": None})
    prepared = method.prepare(data, stage)
    seen = [prepared.read_image(i).tobytes() for i in range(prepared.size)]
    assert seen == [data.read_image(i).tobytes() for i in range(12) if i not in rows]
    drawn = {i for epoch in range(9) for batch in prepared.batch_indices(epoch, 4) for i in batch}
    assert drawn == set(range(prepared.size))
    for kind, reader in ((PSEUDO_LABELS, prepared.read_mask), (CONFIDENCE, prepared.read_saliency)):
        files = [folder / kind / f"{data.name(i)}.png" for i in range(12) if i not in rows]
        assert all(np.array_equal(reader(i), read_mask(file)) for i, file in enumerate(files))


def test_without_it_nothing_is_kept_out(world, tmp_path):
    take_step(world, "tags", tmp_path)
    assert not (tmp_path / EARLY_STOPPING).exists()


def test_a_step_without_new_classes_has_no_second_round_to_end(world, tmp_path):
    data = data_for(world, "tags", new=[])
    take_step(world, "tags", tmp_path, data=data, n_new=0, config=stopping())
    assert not (tmp_path / EARLY_STOPPING).exists()


def test_too_few_images_are_refused_before_the_first_round(world, tmp_path):
    data = data_for(world, "tags")
    data.tags[:, N_OLD] = 0
    data.tags[0, N_OLD] = 1
    with pytest.raises(InputError, match="has 1 images tagged present and 7 tagged absent"):
        take_step(world, "tags", tmp_path, data=data, config=stopping())
    assert not list(tmp_path.iterdir())


def _until_killed(world: World, folder: Path, at: int) -> None:
    """Take the step and kill this process after iteration ``at`` of the second round, before its state is saved."""
    torch.set_num_threads(1)
    passed = 0

    def kill(_: Tick) -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            os.kill(os.getpid(), signal.SIGKILL)

    step(world, folder, runtime=OFTEN, on_tick=kill)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_killed_run_stops_at_the_same_epoch_with_the_same_weights(world, run, tmp_path, left):
    folder, model, ticks = run
    child = multiprocessing.get_context("spawn").Process(
        target=_until_killed, args=(world, tmp_path, len(ticks) - left)
    )
    child.start()
    child.join(240)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / EARLY_STOPPING).exists()
    rest: list[Tick] = []
    resumed = step(world, tmp_path, runtime=OFTEN, resume=True, on_tick=rest.append)
    assert len(rest) == left + 1
    assert not differing(state_of(resumed), state_of(model))
    assert (tmp_path / EARLY_STOPPING).read_bytes() == (folder / EARLY_STOPPING).read_bytes()
    assert iterations_of(tmp_path) == iterations_of(folder)
    again: list[Tick] = []
    finished = step(world, tmp_path, resume=True, on_tick=again.append)
    assert not again
    assert not differing(state_of(finished), state_of(model))
