"""Rows of the shipped protocols: options that their methods accept, inputs that they need, the papers' figures."""

from __future__ import annotations

from typing import Any

import pytest

from cilseg.bench.config import ProtocolConfig, load_protocol, protocol_names
from cilseg.config import OptimiserConfig
from cilseg.methods import METHODS

VOC = ("voc-15-5", "voc-10-10", "voc-15-1", "voc-19-1")
MASKS = ("joint", "ft", "lwf", "lwf-mc", "ilt", "mib", "plop", "sdr", "recall")
TAGS = ("cam", "seam", "ss", "eps", "wilson")
ROWS = [(name, row) for name in protocol_names() for row in load_protocol(name).methods]


def options_of(config: ProtocolConfig, row: str) -> Any:
    method = METHODS[config.method_of(row)]
    return config.update_config(row).options(method.name, method.options_type)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_has_options_and_inputs_that_its_method_takes(name: str, row: str) -> None:
    config = load_protocol(name)
    entry, method = config.methods[row], METHODS[config.method_of(row)]
    assert set(entry.options) <= {method.name}
    options_of(config, row)  # raises on unknown keys and wrong values
    assert isinstance(config.update_config(row).optimiser, OptimiserConfig)
    assert (entry.replay is not None) == ("replay" in method.needs)
    assert (entry.saliency is not None) == ("saliency" in method.needs)
    assert (entry.shots is not None) == (method.supervision == "shots")
    assert (entry.base is not None) == (method.name == "pifs")
    if entry.replay == "withheld":
        assert config.data.withheld is not None
    assert any(config.seeds_of(row, rule) for rule in config.rules)


def test_presets_for_two_cores_have_every_method() -> None:
    def methods(name: str) -> set[str]:
        config = load_protocol(name)
        return {config.method_of(row) for row in config.methods}

    ours = {"tags", "masks"}
    assert methods("scenes-6-2") == set(METHODS)
    assert methods("voc-animals-4-2") == set(METHODS) - ours
    assert ours <= methods("voc-animals-beyond")


def test_rows_of_the_default_method_never_see_old_tags_and_get_the_absent_tagged_images() -> None:
    config = load_protocol("voc-animals-beyond")
    for name, row in config.methods.items():
        method = config.method_of(name)
        if method in ("tags", "wilson"):
            options = row.options.get(method, {})
            options = options["first"] if method == "tags" else options
            assert options["use_old_tags"] is False, name
            assert row.negatives is (name not in ("no-negatives", "wilson-tuned"))


def test_a_method_runs_once_per_rule_in_the_voc_presets() -> None:
    for name in VOC:
        config = load_protocol(name)
        for rule in config.rules:
            run = [config.method_of(row) for row in config.methods if config.seeds_of(row, rule)]
            assert len(run) == len(set(run))
            assert set(MASKS) <= set(run)
            assert set(TAGS) & set(run) == (set(TAGS) if name in ("voc-15-5", "voc-10-10") else set())


@pytest.mark.parametrize("name", VOC)
def test_mask_rows_have_the_papers_figures(name: str) -> None:
    config = load_protocol(name)
    for row in ("lwf", "lwf-mc", "ilt", "mib", "plop", "plop-disjoint"):
        rates = config.update_config(row).optimiser
        assert (rates.epochs, rates.batch_size, rates.crop_px, rates.schedule) == (30, 24, 512, "poly")
        assert {rates.lr_body, rates.lr_head, rates.lr_classifier, rates.lr_new_classifier} == {0.001}
    assert options_of(config, "mib").kd_weight is None
    assert (options_of(config, "lwf").kd_weight, options_of(config, "ilt").body_weight) == (100, 100)
    overlap, disjoint = options_of(config, "plop"), options_of(config, "plop-disjoint")
    assert (overlap.pod_weight, overlap.pod_logits_weight, overlap.floor) == (0.01, 0.0005, None)
    assert (disjoint.pod_weight, disjoint.pod_logits_weight, disjoint.floor) == (0.01, 0.0001, 0.5)
    sdr = config.update_config("sdr").optimiser
    assert (sdr.batch_size, sdr.lr_body, sdr.lr_new_classifier) == (8, 0.0001, 0.0001)


def test_the_decoder_of_recall_trains_about_as_long_as_published() -> None:
    for name in VOC:
        config = load_protocol(name)
        for row, rule, per_class in (("recall", "overlap", 1500), ("recall-disjoint", "disjoint", 1000)):
            rates = config.update_config(row).optimiser
            assert (rates.batch_size, rates.crop_px, rates.lr_head, rates.lr_new_classifier) == (4, 321, 0.0005, 0.0005)
            images = config.data.sizes[rule][1:]
            ours = sum(2 * (n // rates.batch_size) * rates.epochs for n in images)
            published = per_class * sum(config.step_sizes[1:])
            assert ours == pytest.approx(published, rel=0.15), (name, row)


@pytest.mark.parametrize("name", ["voc-15-5", "voc-10-10", "coco-to-voc"])
def test_tag_rows_have_the_papers_first_stage(name: str) -> None:
    config = load_protocol(name)
    stages = {row: options_of(config, row).weak for row in ("cam", "seam", "ss", "eps")}
    assert {row: (s.epochs, s.batch_size, s.crop_px) for row, s in stages.items()} == {
        "cam": (15, 8, 448),
        "seam": (8, 8, 448),
        "ss": (24, 16, 321),
        "eps": (15, 8, 448),
    }
    assert {s.weight_decay for s in stages.values()} == {0.0005}
    assert stages["ss"].power == 0
    assert (options_of(config, "cam").threshold, options_of(config, "seam").threshold) == (0.2, 0.26)
    for row in stages:
        rates = config.update_config(row).optimiser
        assert (rates.lr_body, rates.lr_head, rates.lr_new_classifier) == (0.001, 0.01, 0.01)
        assert rates.epochs == config.update_config("wilson").optimiser.epochs


def test_the_steps_of_one_class_have_absent_tagged_images() -> None:
    config = load_protocol("scenes-4-1-1-1-1")
    assert all(config.methods[row].negatives for row in ("mib", "plop", "wilson"))
