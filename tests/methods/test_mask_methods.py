"""Methods that learn from masks: how each starts, what it protects, what it leaves for later steps."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_step import (
    CLASSES,
    OLD,
    RUNTIME,
    data_for,
    differing,
    inputs_for,
    replay_of,
    state_of,
    take_step,
    update_config,
)

from cilseg.config import UpdateConfig
from cilseg.errors import ArtifactError, InputError
from cilseg.methods import METHODS, StepContext, StepInputs
from cilseg.methods.prototypes import PROTOTYPES, load_prototypes
from cilseg.methods.recall import Recall
from cilseg.train.steps import KEEP


def method_of(world, name, *, n_new=1, parent=None, inputs=None, **options):
    """A method before its step."""
    parent = parent or world.parent_of(name)
    config = update_config(name, **options) if options else UpdateConfig()
    return METHODS[name](StepContext(parent.extended(n_new), parent, config, inputs or inputs_for(world, name)))


@pytest.fixture(scope="module")
def images(world):
    return torch.stack([torch.from_numpy(world.source.image(i).copy()).permute(2, 0, 1) for i in range(3)])


STARTING_AS_BACKGROUND = ["mib", "plop", "mib-points", "mib-scribbles"]


class TestNewClassifiersStartAsBackground:
    @pytest.mark.parametrize("name", STARTING_AS_BACKGROUND)
    @pytest.mark.parametrize("n_new", [1, 2])
    def test_old_classes_keep_their_probability(self, world, images, name, n_new):
        method = method_of(world, name, n_new=n_new)
        n_old = method.n_old
        with torch.no_grad():
            old = method.old_model(images).softmax(dim=1)
            new = method.model.eval()(images).softmax(dim=1)
        torch.testing.assert_close(new[:, 1:n_old], old[:, 1:], rtol=1e-4, atol=1e-6)
        shares = torch.cat([new[:, :1], new[:, n_old:]], dim=1)
        torch.testing.assert_close(shares.sum(dim=1), old[:, 0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shares, shares[:, :1].expand_as(shares), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", STARTING_AS_BACKGROUND)
    def test_a_step_without_new_classes_starts_as_the_parent_is(self, world, name):
        """The newest classifier of a parent with two steps belongs to the parent."""
        parent = world.parent_of(name).extended(1)
        before = state_of(parent)
        method = method_of(world, name, n_new=0, parent=parent)
        assert not differing(state_of(method.model), before)

    def test_a_cosine_classifier_has_no_background_to_share(self, world):
        with pytest.raises(InputError, match="cosine classifier, which knows no background bias") as caught:
            method_of(world, "mib", parent=world.parents["cosine"])
        assert "Use pifs" in str(caught.value)


@pytest.mark.parametrize(("n_new", "options", "weight"), [(1, {}, 100), (2, {}, 10), (1, {"kd_weight": 3}, 3)])
def test_weight_of_the_distillation_of_mib(world, n_new, options, weight):
    method = method_of(world, "mib", n_new=n_new, **options)
    assert method.kd_weight == weight
    unit = method_of(world, "mib", n_new=n_new, kd_weight=1.0)
    unit.model.load_state_dict(method.model.state_dict())
    batch = data_for(world, "mib", new=CLASSES[2 : 2 + n_new]).collate(0, [0, 1])
    found, plain = method.eval()(batch, 0), unit.eval()(batch, 0)
    torch.testing.assert_close(found["kd"], weight * plain["kd"])
    assert torch.equal(found["ce"], plain["ce"])


class TestPlop:
    @pytest.mark.parametrize("gate", ["paper", "reference"])
    def test_thresholds_come_from_one_pass_over_the_crops(self, world, tmp_path, gate):
        reads: list[int] = []
        data = data_for(world, "plop")
        read_image = data.read_image

        def counting(index):
            reads.append(index)
            return read_image(index)

        counted = data.changed(read_image=counting)
        sets = []
        original = METHODS["plop"].prepare

        def prepare(self, given, stage):
            prepared = original(self, given, stage)
            sets.append((self.thresholds, list(reads)))
            return prepared

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(METHODS["plop"], "prepare", prepare)
            model = take_step(world, "plop", tmp_path, data=counted, config=update_config("plop", gate=gate))
        ((thresholds, seen),) = sets
        assert sorted(seen) == list(range(data.size))
        assert thresholds.shape == (model.n_classes,)
        assert thresholds[-1] == (0 if gate == "paper" else 0.001)  # the new class is never predicted
        assert thresholds[:-1].max() > thresholds[-1]

    def test_the_gates_differ(self, world, tmp_path):
        models = [
            take_step(world, "plop", tmp_path / gate, config=update_config("plop", gate=gate))
            for gate in ("paper", "reference")
        ]
        assert differing(state_of(models[0]), state_of(models[1]))


class TestPrototypes:
    def test_base_training_measures_every_class(self, world):
        kept = load_prototypes(world.kept)
        model = world.parents["linear"]
        assert kept.means.shape == (model.n_classes, model.backbone.channels)
        assert (kept.counts > 0).all()
        assert kept.means.abs().sum(dim=1).min() > 0

    def test_a_step_leaves_those_of_old_and_new_classes(self, world, tmp_path):
        before = load_prototypes(world.kept)
        model = take_step(world, "sdr", tmp_path)
        after = load_prototypes(tmp_path / KEEP)
        assert after.means.shape == (model.n_classes, model.backbone.channels)
        assert after.counts[-1] > 0
        assert after.means[-1].abs().sum() > 0
        assert (after.counts[: len(before.counts)] >= before.counts).all()

    def test_the_next_step_starts_from_them(self, world, tmp_path):
        first = take_step(world, "sdr", tmp_path / "first")
        inputs = StepInputs(kept=tmp_path / "first" / KEEP)
        data = data_for(world, "sdr", new=CLASSES[3:], step=2)
        second = take_step(world, "sdr", tmp_path / "second", parent=first, data=data, inputs=inputs)
        assert load_prototypes(tmp_path / "second" / KEEP).counts.shape == (second.n_classes,)

    @pytest.mark.parametrize("missing", ["folder", "file", "class"])
    def test_without_them_sdr_does_not_start(self, world, tmp_path, missing):
        parent = world.parent_of("sdr")
        kept = {"folder": None, "file": tmp_path, "class": world.kept}[missing]
        if missing == "class":
            parent = parent.extended(1)
        with pytest.raises(InputError) as caught:
            take_step(world, "sdr", tmp_path / "run", parent=parent, inputs=StepInputs(kept=kept))
        known = 3 if missing == "class" else 0
        assert f"prototypes of the parent's {parent.n_classes} classes, background included" in str(caught.value)
        assert f"the parent keeps {known}. Base training and sdr leave them" in str(caught.value)
        assert "use mib or plop" in str(caught.value)
        assert not (tmp_path / "run").exists()

    def test_a_damaged_file(self, world, tmp_path):
        (tmp_path / PROTOTYPES).write_bytes((world.kept / PROTOTYPES).read_bytes()[:100])
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_prototypes(tmp_path)

    @pytest.mark.parametrize("name", ["ft", "mib"])
    def test_other_steps_leave_none(self, world, tmp_path, name):
        take_step(world, name, tmp_path)
        assert not list((tmp_path / KEEP).iterdir())


@pytest.fixture(scope="module")
def step(world, tmp_path_factory):
    """Run folder and model of a first step of RECALL."""
    folder = tmp_path_factory.mktemp("recall")
    return folder, take_step(world, "recall", folder)


class TestRecall:
    def test_the_encoder_is_frozen_bit_for_bit(self, world, step):
        parent, model = state_of(world.parents["linear"]), state_of(step[1])
        changed = differing({key: model[key] for key in parent}, parent)
        assert changed
        assert not [key for key in changed if key.startswith("backbone.")]
        assert all(p.requires_grad for p in step[1].backbone.parameters())

    def test_batches_of_new_and_replayed_images_take_turns(self, world, tmp_path):
        plans = []
        original = Recall.prepare

        def prepare(self, data, stage):
            prepared = original(self, data, stage)
            plans.append((data.size, prepared))
            return prepared

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recall, "prepare", prepare)
            take_step(world, "recall", tmp_path, config=update_config("recall", helper=False))
        ((n_new, data),) = plans
        for epoch in (0, 1):
            batches = data.batch_indices(epoch, 4)
            assert len(batches) == data.iterations(4) == 2 * n_new // 4
            kinds = [{index >= n_new for index in batch} for batch in batches]
            assert kinds == [{False}, {True}] * (len(batches) // 2)
            assert sorted(i for batch in batches for i in batch if i < n_new) == list(range(n_new))
        assert data.batch_indices(0, 4) != data.batch_indices(1, 4)

    def test_labels_of_new_images_are_inpainted_by_the_old_model(self, world, step):
        from cilseg_serve.images import read_mask

        folder, _ = step
        old, new_id = world.parents["linear"], len(OLD) + 1
        data = data_for(world, "recall")
        for index in range(data.size):
            label, truth = read_mask(folder / "labels" / f"new_{index:05d}.png"), data.read_mask(index)
            pixels = torch.from_numpy(data.read_image(index).copy()).permute(2, 0, 1)[None]
            with torch.no_grad():
                answer = old.upsample(old(pixels), 64, 64)[0].argmax(dim=0).numpy()
            assert (label[truth == new_id] == new_id).all()
            assert (label[truth != new_id] == answer[truth != new_id]).all()

    def test_missing_classes_are_refused(self, world, tmp_path):
        with pytest.raises(InputError, match=r"none of the old classes with the ids \[2\]; add some of each"):
            take_step(
                world, "recall", tmp_path / "a", inputs=inputs_for(world, "recall", replay=replay_of(world, OLD[:1]))
            )
        with pytest.raises(InputError, match="give --replay DIR with one folder of images per old class") as caught:
            take_step(world, "recall", tmp_path / "b", inputs=StepInputs())
        assert "mib and plop learn from the same masks" in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_the_helper_labels_replay_images_in_the_next_step(self, world, step, tmp_path):
        from cilseg_serve.images import read_mask

        folder, first = step
        kept = folder / KEEP
        assert [f.name for f in kept.iterdir()] == ["helper_step1.safetensors"]
        assert not [key for key in load_file(kept / "helper_step1.safetensors") if key.startswith("backbone.")]
        names = CLASSES[:3]
        inputs = StepInputs(replay=replay_of(world, names), kept=kept)
        data = data_for(world, "recall", new=CLASSES[3:], step=2)
        second = take_step(world, "recall", tmp_path / "second", parent=first, data=data, inputs=inputs)
        assert second.n_classes == 5
        files = sorted(f.name for f in (tmp_path / "second" / KEEP).iterdir())
        assert files == ["helper_step1.safetensors", "helper_step2.safetensors"]
        assert (tmp_path / "second" / KEEP / files[0]).read_bytes() == (kept / files[0]).read_bytes()
        labels = [read_mask(f) for f in sorted((tmp_path / "second" / "labels").glob("replay_*.png"))]
        assert len(labels) == 3 * len(names)
        # Images found for the class of step 1 are labelled by its helper, which knows that class and background alone.
        assert all(set(mask.flat) <= {0, 3} for mask in labels[6:])

    def test_a_step_without_its_helper_is_refused(self, world, step, tmp_path):
        data = data_for(world, "recall", new=CLASSES[3:], step=2)
        inputs = StepInputs(replay=replay_of(world, CLASSES[:3]), kept=world.kept)
        with pytest.raises(InputError, match="needs the helper of step 1 to label replay images of its classes"):
            take_step(world, "recall", tmp_path, parent=step[1], data=data, inputs=inputs)

    def test_no_helper_when_none_is_wanted(self, world, tmp_path):
        take_step(world, "recall", tmp_path, config=update_config("recall", helper=False))
        assert not list((tmp_path / KEEP).iterdir())
        assert not (tmp_path / "helper").exists()

    def test_fewer_new_images_than_a_batch(self, world, tmp_path):
        data = data_for(world, "recall", images=3)
        assert take_step(world, "recall", tmp_path, data=data, runtime=RUNTIME).n_classes == 4
