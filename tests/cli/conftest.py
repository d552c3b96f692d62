"""One small story, made once by the command line itself: scenes, base model, update from tags, export."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_server import CommandServer, Finished

from cilseg.data.source import open_source
from cilseg.data.taglist import tags_from_source, write_tag_list

OLD = "starfish,boat,house,lifebuoy,leaf,mushroom"
CONFIG = """
train: {optimiser: {epochs: 24, batch_size: 8, crop_px: 64, crop_scale: [0.7, 1.0], lr_body: 0.1, lr_head: 0.1,
                    lr_classifier: 0.1}}
update: {optimiser: {epochs: 2, batch_size: 12, crop_px: 64}, wilson: {warm_up_epochs: 1}}
runtime: {threads: 1}
model: {backbone: test_resnet, output_stride: 8, head_channels: 64, head_dilations: [2, 4, 6]}
"""


class Commands:
    """Runs ``cilseg`` in a folder of its own."""

    def __init__(self, server: CommandServer, folder: Path) -> None:
        self._server, self._count = server, 0
        self.cwd = folder / "cwd"
        self._streams = folder / "streams"
        self.cwd.mkdir()
        self._streams.mkdir()

    def __call__(
        self, *arguments: object, env: Mapping[str, str] | None = None, sabotage: Sequence[str] = ()
    ) -> Finished:
        self._count += 1
        streams = self._streams / str(self._count)
        streams.mkdir()
        child = self._server.start(arguments, cwd=self.cwd, streams=streams, env=env, sabotage=sabotage)
        return self._server.wait(child, streams=streams)


@dataclass(frozen=True)
class Story:
    """The files of the story; ``answers`` holds what each command said."""

    root: Path
    answers: Mapping[str, Finished]

    @property
    def scenes(self) -> Path:
        return self.root / "scenes"

    @property
    def tags(self) -> Path:
        return self.root / "new_classes.json"

    @property
    def config(self) -> Path:
        return self.root / "small.yaml"

    @property
    def train(self) -> tuple[object, ...]:
        """Arguments that make ``shapes:1`` in another registry."""
        return ("train", "shapes", "--data", self.scenes, "--config", self.config, "--classes", OLD)

    @property
    def update(self) -> tuple[object, ...]:
        """Arguments that make ``shapes:2`` from ``shapes:1``."""
        return ("update", "--tags", self.tags)


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


Contents = Callable[[Path], dict[str, str]]


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
