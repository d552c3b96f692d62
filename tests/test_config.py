"""Presets, overrides, and every fault of a configuration at once."""

from __future__ import annotations

import re

import pytest

from cilseg.config import Config, configs_directory, load_config, preset_names
from cilseg.errors import InputError, NotFoundError
from cilseg.methods.wilson import WilsonOptions


def test_every_preset_loads():
    assert {"tiny", "mobilenetv2"} <= set(preset_names())
    assert len(preset_names()) == len(list(configs_directory().glob("*.yaml")))
    for name in preset_names():
        assert load_config(name) == load_config(configs_directory() / f"{name}.yaml")


def test_a_preset_is_more_than_the_defaults():
    assert load_config() == Config()
    tiny = load_config("tiny")
    assert tiny.model.backbone == "test_resnet"
    assert tiny.update.optimiser.schedule == "warmup"
    assert Config().update.method == load_config("mobilenetv2").update.method == "tags"
    assert tiny.update.options("wilson", WilsonOptions).alpha == WilsonOptions().alpha
    assert tiny.update.options("wilson", WilsonOptions).warm_up_epochs == 4


def test_a_dump_reads_back():
    config = load_config("mobilenetv2", ["seed=7"])
    assert load_config(base=config.model_dump(mode="json")) == config


def test_overrides():
    config = load_config(
        "tiny",
        [
            "seed=3",
            "train.optimiser.lr_body=1e-3",
            "update.optimiser.clip_norm=null",
            "model.head_dilations=[1, 2]",
            "update.wilson.pamr=false",
            "update.wilson.loss_weights.loc=0",
            "model.weights=weights/a=b.safetensors",
        ],
    )
    assert config.seed == 3
    assert config.train.optimiser.lr_body == 0.001
    assert config.train.optimiser.lr_head == load_config("tiny").train.optimiser.lr_head
    assert config.update.optimiser.clip_norm is None
    assert config.model.head_dilations == (1, 2)
    wilson = config.update.options("wilson", WilsonOptions)
    assert wilson.pamr is False
    assert wilson.loss_weights.loc == 0
    assert wilson.loss_weights.seg == 1
    assert config.model.weights == "weights/a=b.safetensors"


def test_overrides_do_not_write_into_the_base():
    base = load_config("tiny").model_dump(mode="json")
    before = str(base)
    load_config(overrides=["train.optimiser.epochs=1", "seed=9"], base=base)
    assert str(base) == before


def test_all_faults_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {backbon: resnet18, output_stride: eight}\n"
        "train: {optimiser: {epochs: 0, lr_bdy: 0.1}}\n"
        "update: {wilson: {loss_weights: {sgm: 1}}, wislon: {alpha: 1}}\n"
        "optimizer: {}\n"
    )
    with pytest.raises(InputError) as caught:
        load_config(path, ["noequals", "seed=[1,", "runtime.device=gpu"], check_methods=True)
    text = str(caught.value)
    for wanted in (
        r"mine\.yaml: 10 faults",
        r"override 'noequals' is not of the form section\.key=value",
        r"override 'seed=\[1,' holds no readable YAML value",
        r"unknown key model\.backbon\. Did you mean 'backbone'\?",
        r"model\.output_stride: .*got 'eight'",
        r"train\.optimiser\.epochs: .*greater than or equal to 1 \(got 0\)",
        r"unknown key train\.optimiser\.lr_bdy\. Did you mean 'lr_body'\?",
        r"unknown key update\.wilson\.loss_weights\.sgm\. Did you mean 'seg'\?",
        r"unknown key update\.wislon\. Did you mean 'wilson'\?",
        r"unknown key optimizer",
        r"runtime\.device: .*'auto', 'cpu', 'cuda' or 'mps' \(got 'gpu'\)",
    ):
        assert re.search(wanted, text), (wanted, text)


@pytest.mark.parametrize(
    "override",
    [
        "train.optimiser.momentum=1",
        "train.optimiser.momentum=-0.1",
        "train.optimiser.weight_decay=-1",
        "train.optimiser.lr_body=.nan",
        "train.optimiser.clip_norm=0",
        "train.optimiser.crop_scale=[0, 1]",
        "model.short_side_px=4",
        "model.input_std=[1, 0, 1]",
        "model.head_dilations=[0]",
        "update.wilson.alpha=1.5",
        "update.wilson.background_mix=-0.5",
        "runtime.workers=-1",
    ],
)
def test_values_out_of_range(override):
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(InputError, match=rf"1 fault, nothing was written\.\n  - {key}"):
        load_config(overrides=[override], check_methods=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"model: {a: [1\n", "is not readable YAML"),
        (b"\xff\xfe\x00", "is not readable YAML"),
        (b"- a\n- b\n", r"must hold sections \(model, train, update \.\.\.\), got list"),
        (b"", "must hold sections .*, got NoneType"),
        (b"1: 2\n", "fault"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        load_config(path)


def test_unknown_presets_and_files(tmp_path):
    with pytest.raises(NotFoundError, match=r"Unknown preset 'tny'\. Did you mean 'tiny'\? Presets: .*mobilenetv2"):
        load_config("tny")
    with pytest.raises(NotFoundError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")
