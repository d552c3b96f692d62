"""Damaged files, kill -9 and Ctrl-C: the registry stays as it was or is complete, and the next command goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cli_story import Commands, Contents, Story
from command_server import Finished

from cilseg.bundle import CHECKPOINT, verify_files
from cilseg.registry import Registry

SAVE = "cilseg.train.engine:save_state"


def assert_sound(root: Path) -> None:
    """Every version is whole, and nothing half-written lies about."""
    for version in Registry.open(root).versions():
        verify_files(version.path, version.manifest)
    # What a killed process had staged may stay in tmp/ for a day, out of sight of every reader.
    assert not [p for p in root.rglob("*.tmp") if "tmp" not in p.relative_to(root).parts[:1]]
    assert not list(root.glob("runs/*/bundle-*"))


def learned(root: Path, ref: str) -> str:
    """Return the hash of a version's weights."""
    return Registry.open(root).resolve(ref).manifest.files[CHECKPOINT]


# Damaged versions


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "missing"])
def test_damaged_checkpoint(story: Story, cilseg: Commands, registry: Path, contents: Contents, damage: str) -> None:
    path = Registry.open(registry).resolve("shapes:1").path / CHECKPOINT
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "one byte changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = contents(registry)
    runs = sorted(registry.glob("runs/*"))
    for command in (story.update, ("validate", "shapes:1"), ("validate", "shapes:2"), ("export",)):
        answer = cilseg(*command)
        assert answer.code == 5, command
        assert "is damaged: checkpoint.safetensors" in answer.err
        assert "Copy it again from where it came, or retrain." in answer.err
        assert answer.out == ""
    assert contents(registry) == before
    assert sorted(registry.glob("runs/*")) == runs
    assert cilseg("list").code == 0


def test_damaged_resume_file(story: Story, cilseg: Commands, registry: Path, contents: Contents) -> None:
    (run,) = registry.glob("runs/update-*")
    resume = run / "resume.safetensors"
    resume.write_bytes(resume.read_bytes()[:1000])
    before = contents(registry)
    answer = cilseg(*story.update, "--resume")
    assert answer.code == 5
    assert "Delete it and start the run again without --resume" in answer.err
    assert contents(registry) == before


# kill -9


def test_kill_in_training_then_resume(story: Story, cilseg: Commands) -> None:
    root = cilseg.cwd / "cilseg-registry"
    dead = cilseg(*story.train, sabotage=("kill_after", SAVE, "9"))
    assert dead.code == -signal.SIGKILL
    assert cilseg("list").code == 2
    assert sorted(p.name for p in root.iterdir()) == ["runs"]
    answer = cilseg(*story.train, "--resume", "--json")
    assert answer.code == 0, answer.err
    assert "Going on with the run in" in answer.err
    (run,) = root.glob("runs/*")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in lines] == list(range(1, 24 * 5 + 1))
    assert answer.json()["version"] == "shapes:1"
    assert learned(root, "shapes:1") == learned(story.root / "cwd" / "cilseg-registry", "shapes:1")
    assert_sound(root)


def test_kill_in_an_update_then_resume(story: Story, cilseg: Commands, registry: Path, contents: Contents) -> None:
    before = contents(registry)
    seed = ("--seed", "7")
    dead = cilseg(*story.update, *seed, sabotage=("kill_after", SAVE, "1"))
    assert dead.code == -signal.SIGKILL
    assert contents(registry) == before
    answer = cilseg(*story.update, *seed, "--resume", "--json")
    assert answer.code == 3
    assert "Going on with the run in" in answer.err
    assert answer.json()["candidate"] == "shapes:3"
    whole = cilseg(*story.update, *seed, "--name", "whole", "--no-gate")
    assert whole.code == 0
    assert learned(registry, "shapes:3") == learned(registry, "whole:1")
    assert_sound(registry)


@pytest.mark.parametrize(
    ("where", "registered"),
    [
        (("kill_before", "cilseg.update.bundle:write_manifest", "1"), False),
        ("register.write:2", False),
        ("register.rename:1", False),
        ("register.commit:1", False),
        ("register.log-write:1", True),
        (("kill_before", "cilseg.registry.registry:Registry.promote", "1"), True),
        ("promote.commit:1", True),
        (("kill_before", "cilseg.update.step:validate_version", "1"), True),
        ("attach.rename:3", True),
    ],
)
def test_kill_in_registration(
    story: Story,
    cilseg: Commands,
    registry: Path,
    contents: Contents,
    where: str | tuple[str, ...],
    registered: bool,
) -> None:
    """The run of the story is finished, so that its repetition under another name only registers."""
    before = contents(registry)
    again = (*story.update, "--from", "shapes", "--resume", "--name", "again")
    dead = _killed(cilseg, again, where)
    assert dead.code == -signal.SIGKILL, dead.err
    names = Registry.open(registry).names()
    assert names == (["again", "shapes"] if registered else ["shapes"])
    if not registered:
        visible = {k: v for k, v in contents(registry).items() if not k.startswith(("tmp/", "versions/"))}
        assert visible == {k: v for k, v in before.items() if not k.startswith("versions/")}
    answer = cilseg(*again, "--json")
    assert answer.code == 3, answer.err
    assert answer.json()["candidate"] == "again:1"
    assert Registry.open(registry).resolve("again@candidate").number == 1
    assert len(Registry.open(registry).versions("again")) == 1
    assert_sound(registry)
    assert cilseg("fsck").code == 0


def _killed(cilseg: Commands, command: tuple[object, ...], where: str | tuple[str, ...]) -> Finished:
    """Run a command that dies at a kill point of the registry, or before a call that ``where`` names."""
    if isinstance(where, str):
        return cilseg(*command, env={"CILSEG_KILL_POINT": where})
    return cilseg(*command, sabotage=where)


def test_kill_in_export(story: Story, cilseg: Commands, registry: Path) -> None:
    """Before the model is attached: its report is there already, and means nothing without it."""
    dead = _killed(cilseg, ("export", "@candidate"), ("kill_before", "cilseg.registry.attachments:publish", "3"))
    assert dead.code == -signal.SIGKILL
    version = Registry.open(registry).resolve("@candidate")
    assert "model.onnx" not in Registry.open(registry).attachments(version)
    image = story.scenes / "images" / "val_00000.png"
    assert cilseg("predict", image, "-o", "out", "-m", "@candidate").code == 2
    again = cilseg("export", "@candidate", "--registry", registry)
    assert again.code == 0
    assert f"Next: cilseg predict IMAGES -o OUT --model shapes:2 --registry {registry}" in again.err
    assert cilseg("predict", image, "-o", "out", "-m", "@candidate").code == 0
    assert_sound(registry)


# Ctrl-C


def test_interrupted_training_says_how_it_goes_on(
    story: Story, cilseg: Commands, registry: Path, contents: Contents
) -> None:
    before = contents(registry)
    answer = cilseg(*story.update, "--seed", "8", sabotage=("interrupt_after", SAVE, "1"))
    assert answer.code == 130
    assert answer.err == "error: interrupted: repeat the command with --resume to go on from the last checkpoint\n"
    assert answer.out == ""
    assert contents(registry) == before
    assert len(list(registry.glob("runs/update-*/resume.safetensors"))) == 2


def test_interrupted_export(cilseg: Commands, registry: Path, contents: Contents) -> None:
    before = contents(registry)
    answer = cilseg("export", "@candidate", sabotage=("interrupt_after", "cilseg.update.export:model_of"))
    assert answer.code == 130
    assert answer.err == "error: interrupted\n"
    assert contents(registry) == before


# Parity


def test_an_export_that_answers_differently(cilseg: Commands, registry: Path, contents: Contents) -> None:
    before = contents(registry)
    answer = cilseg("export", "@candidate", sabotage=("permute_classes_of_export",))
    assert answer.code == 4
    assert answer.out == ""
    assert "model.onnx does not give the network's answers" in answer.err
    assert "Do not deploy this file." in answer.err
    worst = Path("parity-shapes-2") / "parity_worst.png"
    assert f"See {worst} (image, torch, file, difference)" in answer.err
    assert (cilseg.cwd / worst).stat().st_size > 0
    assert not json.loads((cilseg.cwd / "parity-shapes-2" / "parity.json").read_text())["passed"]
    assert contents(registry) == before
