"""Protocol files: presets, overrides, and every fault in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_protocol import tree, write_protocol

from cilseg.bench.config import load_protocol, protocol_names
from cilseg.bench.settings import SETTINGS, Settings
from cilseg.errors import InputError, NotFoundError
from cilseg.methods.wilson import WilsonOptions

WANTED = {
    "voc-15-5": (15, 5),
    "voc-10-10": (10, 10),
    "voc-15-1": (15, 1, 1, 1, 1, 1),
    "voc-19-1": (19, 1),
    "coco-to-voc": (60, 20),
    "voc-animals-4-2": (4, 2),
    "voc-animals-beyond": (4, 2),
    "scenes-6-2": (6, 2),
    "scenes-4-1-1-1-1": (4, 1, 1, 1, 1),
}


def test_the_presets_are_these() -> None:
    assert set(protocol_names()) == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_preset_loads(name: str) -> None:
    config = load_protocol(name)
    assert config.step_sizes == WANTED[name]
    for entry in config.methods:
        assert config.update_config(entry).method == config.method_of(entry)


@pytest.mark.parametrize("name", ["voc-15-5", "voc-10-10", "voc-15-1", "voc-19-1"])
def test_voc_presets_have_the_papers_recipe(name: str) -> None:
    config = load_protocol(name)
    assert config.model.backbone == "resnet101"
    assert (config.base[0].epochs, config.base[0].lr_body, config.base[0].batch_size) == (30, 0.01, 24)
    assert config.update_config("ft").optimiser.lr_body == 0.001
    assert config.update_config("joint").optimiser.lr_body == 0.01


def test_wilson_keeps_the_schedule_of_its_release() -> None:
    update = load_protocol("voc-15-5").update_config("wilson")
    rates = update.optimiser
    assert (rates.epochs, rates.schedule, rates.lr_body, rates.lr_head) == (40, "warmup", 0.001, 0.01)
    wilson = update.options("wilson", WilsonOptions)
    assert (wilson.alpha, wilson.warm_up_epochs, wilson.use_old_tags) == (0.5, 5, False)
    assert load_protocol("coco-to-voc").update_config("wilson").options("wilson", WilsonOptions).alpha == 0.9


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(NotFoundError, match=r"Unknown protocol 'voc-15-6'.*Did you mean 'voc-15-5'"):
        load_protocol("voc-15-6")


def test_published_numbers_are_no_preset() -> None:
    with pytest.raises(NotFoundError, match="Unknown protocol 'published'"):
        load_protocol("published")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.yaml does not exist.*scenes-6-2"):
        load_protocol(tmp_path / "absent.yaml")


def test_every_fault_is_in_one_message(tmp_path: Path) -> None:
    content = tree(tmp_path, seed=[1])
    content["methods"]["ft"]["optimizer"] = {"epochs": 3}
    content["methods"]["tags"]["negatives"] = "perhaps"
    content["base"][0]["epoch"] = 3
    content["data"]["sources"]["tiny"]["labls"] = "voc"
    with pytest.raises(InputError) as caught:
        load_protocol(write_protocol(tmp_path / "p.yaml", content))
    text = str(caught.value)
    assert "5 faults" in text
    assert "unknown key seed. Did you mean 'seeds'?" in text
    assert "unknown key methods.ft.optimizer. Did you mean 'optimiser'?" in text
    assert "unknown key base.0.epoch. Did you mean 'epochs'?" in text
    assert "unknown key data.sources.tiny.labls. Did you mean 'labels'?" in text
    assert "methods.tags.negatives" in text


def test_faults_between_sections_are_in_one_message(tmp_path: Path) -> None:
    content = tree(tmp_path, step_sizes=[2, 2])
    content["data"] = {"sources": {"tiny": {}}, "sizes": {"overlap": [1, 2, 3]}}
    content["methods"]["base"] = {"method": "ft"}
    content["methods"]["ft"]["optimiser"] = {"epoks": 2}
    content["methods"]["ft"]["prior"] = "classes"
    content["methods"]["ft"]["options"] = {"wilsn": {}, "cam": {"weak": {"epoch": 3}}}
    with pytest.raises(InputError) as caught:
        load_protocol(write_protocol(tmp_path / "p.yaml", content))
    text = str(caught.value)
    assert "add up to 4, but there are 3 classes" in text
    assert "data.sources.tiny: give either root or scenes" in text
    assert "data.sizes.overlap: 3 numbers for 2 steps" in text
    assert "'base' is no name for a row" in text
    assert "unknown key methods.ft.optimiser.epoks. Did you mean 'epochs'?" in text
    assert "unknown key methods.ft.options.wilsn. Did you mean 'wilson'?" in text
    assert "unknown key methods.ft.options.cam.weak.epoch. Did you mean 'epochs'?" in text
    assert "methods.tags: negatives need data.withheld" in text
    assert "methods.ft: ft takes no prior beside its images; tags does" in text


def test_overrides_reach_lists_and_settings(tmp_path: Path) -> None:
    path = write_protocol(tmp_path / "p.yaml", tree(tmp_path, settings="mib"))
    config = load_protocol(path, ["base.0.epochs=7", "settings.test_images=all", "methods.ft.optimiser.epochs=2"])
    assert config.base[0].epochs == 7
    assert config.settings == Settings(**{**SETTINGS["mib"], "test_images": "all"})
    assert config.update_config("ft").optimiser.epochs == 2
    assert load_protocol(path, ["settings=plop"]).settings == Settings(**SETTINGS["plop"])


def test_bad_overrides_are_told_together(tmp_path: Path) -> None:
    path = write_protocol(tmp_path / "p.yaml", tree(tmp_path))
    with pytest.raises(InputError) as caught:
        load_protocol(path, ["nothing", "base.4.epochs=1", "settings=wilsn"])
    text = str(caught.value)
    assert "'nothing' is not of the form" in text
    assert "'base.4.epochs=1' names no item" in text
    assert "unknown preset 'wilsn'. Did you mean 'wilson'?" in text


def test_a_crop_needs_a_size() -> None:
    with pytest.raises(ValueError, match="eval_crop_px needs an eval_short_side_px at least as large"):
        Settings(eval_crop_px=512)


def test_seeds_may_differ_between_rules(tmp_path: Path) -> None:
    content = tree(tmp_path, rules=["overlap", "disjoint"])
    content["methods"]["ft"]["seeds"] = {"overlap": [0, 1]}
    config = load_protocol(write_protocol(tmp_path / "p.yaml", content))
    assert config.seeds_of("ft", "overlap") == (0, 1)
    assert config.seeds_of("ft", "disjoint") == ()
    assert config.seeds_of("tags", "disjoint") == (0,)
