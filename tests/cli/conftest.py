"""One small story, made once by the command line itself: scenes, base model, update from tags, export."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_story import CONFIG, Commands, Contents, Story
from command_server import CommandServer, Finished

from cilseg.data.source import open_source
from cilseg.data.taglist import tags_from_source, write_tag_list


@pytest.fixture(scope="session")
def server() -> Iterator[CommandServer]:
    running = CommandServer()
    yield running
    running.close()


@pytest.fixture
def cilseg(server: CommandServer, tmp_path: Path) -> Commands:
    return Commands(server, tmp_path)


@pytest.fixture(scope="session")
def story(server: CommandServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Story:
    """Made by the first process that asks; with pytest-xdist the others wait for it."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent
    root = shared / "story"
    with (shared / "story.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "answers.json").is_file():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            answers = _tell(Story(root, {}), Commands(server, root))
            (root / "answers.json").write_text(json.dumps({k: [a.code, a.out, a.err] for k, a in answers.items()}))
    recorded = json.loads((root / "answers.json").read_text())
    return Story(root, {name: Finished(*answer) for name, answer in recorded.items()})


def _tell(story: Story, cilseg: Commands) -> dict[str, Finished]:
    # A folder with the default name in the working directory: no command below names a registry or a version.
    answers = {"scenes": cilseg("scenes", story.scenes, "--train", 40, "--val", 24, "--size", 64)}
    story.config.write_text(CONFIG)
    answers["train"] = cilseg(*story.train)
    assert answers["train"].code == 0, answers["train"].err
    train = open_source(story.scenes, split="train")
    write_tag_list(story.tags, tags_from_source(train, range(24), new_classes=("tree", "fish")))
    answers["dry-run"] = cilseg("update", "--tags", story.tags, "--dry-run")
    answers["update"] = cilseg(*story.update)
    answers["export"] = cilseg("export")
    answers["predict"] = cilseg("predict", story.scenes / "images", "-o", story.root / "predictions")
    for verb in ("dry-run", "export", "predict"):
        assert answers[verb].code == 0, answers[verb].err
    assert answers["update"].code == 3, answers["update"].err
    return answers


@pytest.fixture
def registry(story: Story, cilseg: Commands) -> Path:
    """A copy of the story's registry, where ``cilseg`` finds it without being told."""
    return Path(shutil.copytree(story.root / "cwd" / "cilseg-registry", cilseg.cwd / "cilseg-registry"))


@pytest.fixture
def contents() -> Contents:
    """What a registry holds: every file outside ``runs/`` with its hash, and the rows of the database."""

    def read(root: Path) -> dict[str, str]:
        found = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not name.startswith(("runs/", "registry.db")):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if (root / "registry.db").is_file():
            with sqlite3.connect(root / "registry.db") as connection:
                found["registry.db"] = "\n".join(connection.iterdump())
        return found

    return read
