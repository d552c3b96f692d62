"""What the tests of the command line share: a folder to run commands in, and the files of one small story."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_server import CommandServer, Finished

Contents = Callable[[Path], dict[str, str]]
"""Registry -> file or database -> what it holds."""
OLD = "starfish,boat,house,lifebuoy,leaf,mushroom"
CONFIG = """
train: {optimiser: {epochs: 24, batch_size: 8, crop_px: 64, crop_scale: [0.7, 1.0], lr_body: 0.1, lr_head: 0.1,
                    lr_classifier: 0.1}}
update: {method: wilson, optimiser: {epochs: 2, batch_size: 12, crop_px: 64}, wilson: {warm_up_epochs: 1}}
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
