"""The training loop: log, progress, clipping, frozen parts, stops."""

from __future__ import annotations

import json
import math

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from tiny_training import make_method, optimiser_config, runtime_config, train

from cilseg.config import UpdateConfig
from cilseg.errors import InputError, TrainingError
from cilseg.methods import Supervised
from cilseg.train.engine import fit, make_fabric, pick_precision
from cilseg.train.steps import run_id_of, train_base, train_increment


def log_of(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """One run with everything that it told."""
    run_dir = tmp_path_factory.mktemp("run")
    ticks = []
    method = train("base", scenes, run_dir, config=optimiser_config(epochs=6), on_tick=ticks.append)
    return method, run_dir, ticks


def test_the_log_has_one_line_per_iteration(trained):
    method, run_dir, ticks = trained
    log = log_of(run_dir)
    assert [row["iteration"] for row in log] == list(range(1, 25))
    assert [row["epoch"] for row in log] == [i // 4 for i in range(24)]
    assert log[0]["lr_factor"] == 1
    assert log[12]["lr_factor"] == pytest.approx(0.5**0.9, abs=1e-6)
    assert all(row["loss"] == row["seg"] for row in log)
    assert [tick.iteration for tick in ticks] == [row["iteration"] for row in log]
    assert ticks[-1].iterations == 24
    assert ticks[-1].epoch == ticks[-1].epochs == 6
    assert ticks[0].losses["loss"] == pytest.approx(log[0]["loss"], abs=1e-6)
    assert not method.training


def test_the_loss_falls(trained):
    _, run_dir, _ = trained
    losses = [row["loss"] for row in log_of(run_dir)]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])


def test_the_resume_file_is_no_pickle_and_holds_the_result(trained):
    method, run_dir, _ = trained
    state = load_file(run_dir / "resume.safetensors")
    for key, value in method.state_dict().items():
        assert torch.equal(state[f"model.{key}"], value), key
    assert sorted(p.name for p in run_dir.iterdir()) == ["log.jsonl", "resume.safetensors"]


def test_huge_rates_stop_the_run_and_keep_the_last_good_state(scenes, tmp_path):
    rates = dict.fromkeys(("lr_body", "lr_head", "lr_classifier"), 1e30)
    config = optimiser_config(**rates)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1.*Lower the learning rates .*resume\.safetensors"):
        train("base", scenes, tmp_path, config=config, runtime=runtime_config(checkpoint_every_s=0))
    state = load_file(tmp_path / "resume.safetensors")
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    assert len(log_of(tmp_path)) >= 1


class _InfiniteGradient(Supervised):
    """A finite loss whose gradient is not."""

    def forward(self, batch, epoch):
        losses = super().forward(batch, epoch)
        return losses | {"extra": (self.model.head.red_conv.weight.square().sum() * 0).sqrt()}


@pytest.mark.parametrize(("clip_norm", "text"), [(10.0, "A gradient is not finite"), (None, "weights are not finite")])
def test_a_gradient_that_is_not_finite_stops_the_run(scenes, tmp_path, clip_norm, text):
    plain = make_method("base", scenes)
    from cilseg.methods import StepContext

    method = _InfiniteGradient(StepContext(plain.model, None, UpdateConfig()))
    config = optimiser_config(clip_norm=clip_norm)
    with pytest.raises(TrainingError, match=text):
        train("base", scenes, tmp_path, config=config, method=method, runtime=runtime_config(checkpoint_every_s=0))
    assert not (tmp_path / "resume.safetensors").exists()


def test_clipping_bounds_the_step(scenes, tmp_path):
    moved = {}
    for clip_norm in (1e-3, None):
        config = optimiser_config(epochs=1, batch_size=16, clip_norm=clip_norm, weight_decay=0.0)
        method = make_method("base", scenes)
        before = {key: value.detach().clone() for key, value in method.named_parameters()}
        train("base", scenes, tmp_path / str(clip_norm), config=config, method=method)
        after = {key: value.detach() for key, value in method.named_parameters()}
        moved[clip_norm] = math.sqrt(sum(float((after[key] - before[key]).square().sum()) for key in after))
    bound = 0.05 * (1 + 0.9) * 1e-3  # rate * (1 + momentum) * norm: the first step of Nesterov
    assert moved[1e-3] == pytest.approx(bound, rel=1e-2)
    assert moved[None] > 10 * bound


def test_frozen_stages_and_norms(scenes, tmp_path):
    model = make_method("base", scenes).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = optimiser_config(epochs=1, frozen_stages=2, freeze_norm=True)
    data = tiny_training.make_data("base", scenes, config)
    train_base(model, data, config, runtime=runtime_config(), seed=0, run_dir=tmp_path, run_id="x")
    after = model.state_dict()
    still = {key for key, value in after.items() if torch.equal(value, before[key])}
    frozen = {k for k in after if k.startswith(("backbone.net.conv1", "backbone.net.layer1", "backbone.net.layer2"))}
    statistics = {k for k in after if k.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert frozen <= still
    assert statistics <= still
    assert "backbone.net.layer3.0.conv1.weight" not in still
    assert "head.map_bn.weight" not in still
    assert model.backbone.frozen_parts == 0
    assert all(p.requires_grad for p in model.parameters())
    model.train()
    assert model.head.map_bn.training


def test_the_parent_is_left_as_it_is(scenes, tmp_path):
    parent = make_method("wilson", scenes).old_model
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    update = UpdateConfig(optimiser=optimiser_config(epochs=1, frozen_stages=1))
    data = tiny_training.make_data("wilson", scenes, update.optimiser)
    arguments = {"n_new": 1, "runtime": runtime_config(), "seed": 0, "run_id": "x"}
    drawn = torch.get_rng_state()
    child = train_increment(parent, data, update, run_dir=tmp_path, **arguments)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())
    assert parent.backbone.frozen_parts == 0
    assert child.classifier.classes_per_step == (3, 1)
    assert not torch.equal(child.state_dict()["head.red_conv.weight"], before["head.red_conv.weight"])


def test_a_new_start_forgets_the_old_run(scenes, tmp_path):
    train("base", scenes, tmp_path, config=optimiser_config(epochs=1))

    def stop(_tick: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("base", scenes, tmp_path, config=optimiser_config(epochs=1), on_tick=stop)
    assert not (tmp_path / "resume.safetensors").exists()
    train("base", scenes, tmp_path, config=optimiser_config(epochs=1), resume=True)
    assert [row["iteration"] for row in log_of(tmp_path)] == [1, 2, 3, 4]


def test_batches_of_one_image_are_refused_unless_norms_are_frozen(scenes, tmp_path):
    config = optimiser_config(epochs=1, batch_size=1)
    with pytest.raises(InputError, match=r"A batch holds 1 image .*batch_size.*freeze_norm: true"):
        train("base", scenes, tmp_path / "refused", config=config)
    assert not (tmp_path / "refused").exists()
    method = make_method("base", scenes)
    method.model.freeze_norm()
    fit(
        method,
        tiny_training.make_data("base", scenes, config),
        config,
        run_dir=tmp_path,
        run_id="x",
        runtime=runtime_config(),
    )
    assert len(log_of(tmp_path)) == 16


def test_devices_that_are_not_there():
    for device in ("cuda", "mps"):
        there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
        if not there:
            with pytest.raises(InputError, match=rf"runtime\.device is {device}, .*Use device=auto or cpu"):
                make_fabric(runtime_config(device=device))
    assert pick_precision("cpu") in ("bf16-mixed", "32-true")
    assert pick_precision("mps") == "32-true"


def test_run_ids_depend_on_every_part_and_not_on_their_order():
    base = run_id_of(kind="update", seed=0, update={"epochs": 3, "method": "wilson"})
    assert base == run_id_of(update={"method": "wilson", "epochs": 3}, seed=0, kind="update")
    assert base != run_id_of(kind="update", seed=1, update={"epochs": 3, "method": "wilson"})
    assert base != run_id_of(kind="update", seed=0, update={"epochs": 4, "method": "wilson"})
    assert len(base) == 12
