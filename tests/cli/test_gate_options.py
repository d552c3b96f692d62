"""Policies, JUnit, power, fusion and images that were trained on, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from cli_story import Commands, Contents, Story

from cilseg.bundle import verify_files
from cilseg.data.source import open_source
from cilseg.data.taglist import tags_from_source, write_tag_list
from cilseg.registry import Registry
from cilseg.update.gate_set import TRAINING_IMAGES, image_hashes

LAX = {"tolerance_points": 100.0, "min_images_per_class": 2, "resamples": 200}


def test_a_laxer_policy_promotes_on_paper_only(cilseg: Commands, registry: Path, contents: Contents) -> None:
    (cilseg.cwd / "lax.yaml").write_text(yaml.safe_dump(LAX))
    judged = cilseg("validate", "@candidate", "--policy", "lax.yaml", "--junit", "gate.xml", "--json")
    assert judged.code == 0, judged.err
    assert judged.json()["gate"]["policy"]["tolerance_points"] == 100
    assert (
        "--policy lax.yaml" in json.loads((Path(judged.json()["report"]).parent / "gate.json").read_text())["command"]
    )
    suite = ElementTree.parse(cilseg.cwd / "gate.xml").getroot()[0]
    assert suite.attrib["name"] == "cilseg.gate shapes:2 against shapes:1"
    assert suite.attrib["failures"] == "0"
    before = contents(registry)
    refused = cilseg("promote", "@candidate")
    assert refused.code == 3
    assert "laxer policy than that of its parent shapes:1: tolerance_points 100 instead of 3" in refused.err
    assert contents(registry) == before


@pytest.mark.usefixtures("registry")
def test_a_verdict_against_another_version_does_not_count(cilseg: Commands) -> None:
    (cilseg.cwd / "few.yaml").write_text(yaml.safe_dump({"min_images_per_class": 2, "resamples": 200}))
    itself = cilseg("validate", "shapes:2", "--against", "shapes:2", "--policy", "few.yaml")
    assert itself.code == 0, itself.out
    refused = cilseg("promote", "shapes:2")
    assert refused.code == 3
    assert "not with its parent shapes:1" in refused.err


@pytest.mark.usefixtures("registry")
def test_unknown_policy_is_refused_before_anything(story: Story, cilseg: Commands) -> None:
    answer = cilseg(*story.update, "--policy", "strickt")
    assert answer.code == 2
    assert "Unknown gate policy 'strickt'. Did you mean 'strict'?" in answer.err
    missing = cilseg(*story.update, "--junit", "nowhere/gate.xml")
    assert missing.code == 2
    assert "does not exist. Make it first." in missing.err


def test_dry_run_says_what_the_gate_set_can_tell(story: Story, cilseg: Commands, registry: Path) -> None:
    assert "Gate set of shapes:1, at a tolerance of 3 points:" in story.answers["dry-run"].out
    answer = cilseg("update", "--tags", story.tags, "--dry-run", "--policy", "strict", "--json")
    power = {row["name"]: row for row in answer.json()["gate_power"]}
    scenes = open_source(story.scenes, split="val")
    assert list(power) == list(Registry.open(registry).resolve("shapes:1").manifest.class_set.foreground)
    for name, row in power.items():
        assert row["images"] == sum(name in scenes.classes_in(i) for i in range(len(scenes)))
        assert row["power"] == 0  # a strict verdict needs 50 images of each class
        assert row["images_needed"] is None or row["images_needed"] >= 50
    assert any(row["measured"] for row in power.values())  # the story's update was compared with shapes:1


def test_gate_images_among_the_tagged_ones_are_refused(
    story: Story, cilseg: Commands, registry: Path, contents: Contents
) -> None:
    gate = open_source(story.scenes, split="val")
    write_tag_list(cilseg.cwd / "val_tags.json", tags_from_source(gate, range(20), new_classes=("tree", "fish")))
    before = contents(registry)
    answer = cilseg("update", "--tags", "val_tags.json")
    assert answer.code == 2
    assert "20 faults" in answer.err
    assert f"image {gate.ids[0]!r} was trained on (in this update)" in answer.err
    assert contents(registry) == before


def test_fusion_is_registered_and_judged_on_the_other_half(cilseg: Commands, story: Story, registry: Path) -> None:
    (cilseg.cwd / "hold.yaml").write_text(yaml.safe_dump({**LAX, "min_images_per_class": 1000}))
    answer = cilseg(
        "validate", "@candidate", "--policy", "hold.yaml", "--on-regression", "fuse", "--json", "--junit", "gate.xml"
    )
    assert answer.code == 3, answer.err
    payload = answer.json()
    assert (payload["candidate"], payload["fused_from"]) == ("shapes:3", "shapes:2")
    opened = Registry.open(registry)
    base, candidate, fused = (opened.resolve(f"shapes:{n}") for n in (1, 2, 3))
    verify_files(fused.path, fused.manifest)
    assert fused.manifest.parent == base.digest
    assert fused.manifest.method == "wilson+fused"
    fusion = fused.manifest.data["fusion"]
    assert (fusion["of"], fusion["chosen_on_images"], fusion["share"]) == (candidate.digest, 12, 0.8)
    assert payload["gate"]["n_images"] == 12
    assert payload["gate"]["attempt"] == 2
    again = cilseg("validate", "shapes:3", "--json")
    assert again.json()["gate"]["n_images"] == 12
    train = open_source(story.scenes, split="train").subset([f"train_{i:05}" for i in range(24)])
    assert set((fused.path / TRAINING_IMAGES).read_text().split()) == set(image_hashes(train.image_paths))
