"""The story told by the command line, without naming a registry or a version where there is one model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from cli_story import Commands, Contents, Story
from PIL import Image

from cilseg.data.source import open_source
from cilseg.registry import Registry

BAR = "━"
COLOUR = re.compile("\x1b\\[[0-9;]*3[0-8]")


def test_train_registers_and_serves_the_first_version(story: Story) -> None:
    answer = story.answers["train"]
    assert answer.out == "shapes:1\n"
    assert "mIoU on 24 images of val" in answer.err
    assert "Next: cilseg update --tags new_classes.json" in answer.err
    assert Registry.open(story.root / "cwd" / "cilseg-registry").history("shapes")[0].to_number == 1


def test_streams_hold_no_bars_and_no_library_chatter(story: Story) -> None:
    for name, answer in story.answers.items():
        assert BAR not in answer.err, name
        assert "bfloat16" not in answer.err, name
        assert "\x1b" not in answer.err + answer.out, name
    assert story.answers["update"].err == ""


def test_dry_run_counts_the_states(story: Story) -> None:
    answer = story.answers["dry-run"]
    rows = {cells[0]: cells[1:] for line in answer.out.splitlines() if len(cells := line.split()) > 4}
    tagged = json.loads(story.tags.read_text())["images"]
    for name in ("tree", "fish"):
        present = sum(name in image["present"] for image in tagged)
        assert rows[name][:4] == ["new", str(present), str(24 - present), "0"]
    assert rows["boat"][:4] == ["old", "0", "0", "24"]
    assert answer.out.startswith("24 images for an update of shapes:1\n")
    assert "Ready: run the same command without --dry-run." in answer.out


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "update.tags.unsure_form=0.2"), "Did you mean 'unsure_from'?"),
        (("--set", "update.tags.unsure_from=2"), "update.tags.unsure_from"),
        (("--method", "tgas"), "Did you mean 'tags'?"),
    ],
)
def test_dry_run_refuses_what_the_run_would(
    story: Story, cilseg: Commands, arguments: tuple[str, ...], said: str
) -> None:
    answer = cilseg("update", "--tags", story.tags, "--dry-run", *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Ready" not in answer.out


def test_dry_run_as_json(story: Story, cilseg: Commands, registry: Path, contents: Contents) -> None:
    before = contents(registry)
    answer = cilseg("update", "--tags", story.tags, "--dry-run", "--json", "--untagged", "unknown")
    assert answer.code == 2
    payload = answer.json()
    assert payload["trainable"] is False
    assert payload["images"] == 24
    tree = next(row for row in payload["classes"] if row["name"] == "tree")
    assert (tree["is_new"], tree["absent"], tree["unknown"]) == (True, 0, 24 - tree["present"])
    assert any("no image tagged absent" in sentence for sentence in payload["missing"])
    assert answer.err == ""
    assert contents(registry) == before


def test_a_folder_of_negatives_counts_and_a_wrong_one_is_refused(
    story: Story, cilseg: Commands, registry: Path, tmp_path: Path
) -> None:
    assert registry.is_dir()
    short = json.loads(story.tags.read_text())
    short["images"] = [image for image in short["images"] if image["present"]]
    (story.tags.parent / "present_only.json").write_text(json.dumps(short))
    ask = ("update", "--tags", story.tags.parent / "present_only.json", "--dry-run", "--no-gate")
    answer = cilseg(*ask, "--json")
    assert answer.out, answer.err
    before = answer.json()
    assert before["negatives"] == 0
    assert before["wanted_negatives"] == math.ceil(before["images"] / 2)
    (tmp_path / "more").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "more" / f"{number}.png")
    after = cilseg(*ask, "--json", "--negatives", tmp_path).json()
    assert (after["images"], after["negatives"]) == (before["images"] + 3, 3)
    assert "3 images show none of the new classes. About" in cilseg(*ask, "--negatives", tmp_path).out
    assert "no such folder" in cilseg(*ask, "--negatives", tmp_path / "nowhere").err
    (tmp_path / "empty").mkdir()
    assert "no image in it" in cilseg(*ask, "--negatives", tmp_path / "empty").err


def test_update_registers_a_candidate_and_holds_it(story: Story) -> None:
    answer = story.answers["update"]
    assert answer.code == 3
    assert "HOLD: the gate set cannot decide" in answer.out
    report = next(line for line in answer.out.splitlines() if line.startswith("Report: "))
    page = Path(report.removeprefix("Report: ")).read_text()
    assert "shapes:2 against shapes:1" in page
    candidate = Registry.open(story.root / "cwd" / "cilseg-registry").resolve("@candidate")
    assert candidate.ref == "shapes:2"
    assert candidate.manifest.class_set.foreground[-2:] == ("tree", "fish")


def test_list_and_show(cilseg: Commands, registry: Path) -> None:
    first, second = cilseg("list", "--json").json()
    assert (first["ref"], first["aliases"], first["gate"]) == ("shapes:1", ["production"], None)
    assert (second["parent"], second["aliases"], second["gate"]) == ("shapes:1", ["candidate"], "HOLD")
    table = cilseg("list", "--registry", registry).out
    assert "@production" in table
    assert "HOLD" in table
    served = cilseg("show").out
    assert served.lstrip().startswith("shapes:1")
    assert "mIoU old" in served
    assert cilseg("show", "@candidate", "--json").json()["data"]["images"] == 24


def test_a_held_candidate_is_served_by_force_only_and_taken_back(
    cilseg: Commands, registry: Path, contents: Contents
) -> None:
    before = contents(registry)
    refused = cilseg("promote", "@candidate")
    assert refused.code == 3
    assert "HOLD" in refused.err
    unexplained = cilseg("promote", "@candidate", "--force")
    assert unexplained.code == 2
    assert "--reason" in unexplained.err
    assert contents(registry) == before
    moved = cilseg("promote", "@candidate", "--force", "--reason", "seen by eye", "--json")
    assert moved.code == 0
    assert (moved.json()["from_number"], moved.json()["to_number"], moved.json()["forced"]) == (1, 2, True)
    assert cilseg("show", "--json").json()["ref"] == "shapes:2"
    back = cilseg("rollback")
    assert back.out == "shapes@production: 2 -> 1 (rolled back)\n"
    assert cilseg("show", "--json").json()["ref"] == "shapes:1"


def test_predict_writes_masks_overlays_and_a_summary(story: Story) -> None:
    answer = story.answers["predict"]
    assert answer.out.startswith("64 images by shapes:1")
    summary = json.loads((story.root / "predictions" / "summary.json").read_text())
    assert summary["complete"]
    assert len(summary["images"]) == 64
    for row in summary["images"]:
        assert (story.root / "predictions" / row["mask"]).is_file()
        assert (story.root / "predictions" / row["overlay"]).is_file()


def test_the_exported_model_answers_like_the_trained_one(story: Story) -> None:
    """On all validation scenes, alone and in a batch."""
    import torch

    from cilseg.models.build import load_model
    from cilseg.models.inference import InferenceGraph
    from cilseg_serve import Segmenter

    registry = Registry.open(story.root / "cwd" / "cilseg-registry")
    version = registry.resolve("shapes:1")
    graph = InferenceGraph(load_model(version.path), version.manifest.preprocessing, outputs=("mask", "logits")).eval()
    segmenter = Segmenter(registry=registry, threads=1)
    scenes = open_source(story.scenes, split="val")
    images = [scenes.image(i) for i in range(len(scenes))]
    batch = segmenter.segment_batch(images)
    seen = set[int]()
    different = pixels = 0
    for image, together in zip(images, batch, strict=True):
        with torch.inference_mode():
            expected = graph(torch.from_numpy(image)[None])[0][0].numpy()
        alone = segmenter.segment(image).mask
        assert np.array_equal(alone, together.mask)
        different += int((alone != expected).sum())
        pixels += alone.size
        seen |= set(np.unique(expected).tolist())
    assert len(seen) >= 3, "the model says nothing, so the comparison is empty"
    assert different <= pixels * 0.001


@pytest.mark.usefixtures("registry")
def test_json_and_quiet_keep_the_streams_apart(story: Story, cilseg: Commands) -> None:
    image = story.scenes / "images" / "val_00000.png"
    predicted = cilseg("predict", image, "-o", "out", "--json")
    assert predicted.json()["images"][0]["width_px"] == 64
    assert predicted.err == ""
    exported = cilseg("export", "--json", "-o", "shapes.onnx")
    assert exported.json()["parity"]["passed"] is True
    assert exported.err == ""
    model = Path(exported.json()["model"])
    assert (cilseg.cwd / "shapes.onnx").read_bytes() == model.read_bytes()
    validated = cilseg("validate", "@candidate", "--json")
    assert validated.code == 3
    assert validated.json()["verdict"] == "HOLD"
    assert validated.err == ""
    quiet = cilseg("predict", image, "-o", "out", "--quiet", env={"FORCE_COLOR": "1"})
    assert quiet.err == ""


@pytest.mark.usefixtures("registry")
def test_a_terminal_gets_a_bar_and_no_color_no_colours(story: Story, cilseg: Commands) -> None:
    image = story.scenes / "images" / "val_00000.png"
    shown = cilseg("predict", image, "-o", "out", env={"FORCE_COLOR": "1"})
    assert BAR in shown.err
    assert COLOUR.search(shown.err)
    plain = cilseg("predict", image, "-o", "out", env={"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert BAR in plain.err
    assert not COLOUR.search(plain.err)
