"""The documentation is run: the README's story on a small scale, every command line, link, key and code block."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from cilseg import errors
from cilseg.bench.config import load_protocol, protocol_names
from cilseg.bench.settings import SETTINGS, Settings
from cilseg.cli.main import app
from cilseg.config import Config, OptimiserConfig, load_config
from cilseg.evaluate.policy import load_policy
from cilseg.methods import METHODS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted([README, *DOCS.rglob("*.md")])
RUN = "<!-- run -->"

# The only thing that is added to the README's commands: smaller numbers.
SMALLER: dict[str, list[str]] = {
    "scenes": ["--train", "40", "--val", "120", "--size", "64"],
    "train": ["--set", "train.optimiser.epochs=1", "--set", "train.optimiser.crop_px=64"],
    "update": [
        *("--set", "update.optimiser.epochs=2", "--set", "update.optimiser.crop_px=64"),
        *("--set", "update.wilson.warm_up_epochs=1"),
    ],
}


@dataclass(frozen=True)
class Block:
    """A fenced code block; ``run`` when the line before it is the mark."""

    page: Path
    language: str
    text: str
    run: bool

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of a shell block, as words."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    pattern = re.compile(rf"^(?P<mark>{RUN}\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
    found = pattern.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, m["language"], m["text"], m["mark"] is not None) for m in found]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    pytest.param(words, id=f"{block.page.stem}: {' '.join(words)}")
    for block in ALL_BLOCKS
    if block.language == "bash"
    for words in block.commands
    if words[0] == "cilseg"
]
MENTIONS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
    for page in PAGES
    for text in re.findall(r"`(cilseg [^`\n]+)`", page.read_text(encoding="utf-8"))
    if (words := shlex.split(text))
]


def test_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    story = [block for block in blocks(README) if block.run]
    assert {block.language for block in story} == {"bash", "python"}
    codes: dict[str, int] = {}
    for block in story:
        for verb, code in _run(block, tmp_path, verdict=codes.get("validate")):
            codes[verb] = code
    told = ["scenes", "train", "update", "validate", "list", "promote", "export", "predict"]
    assert list(codes) == told

    listing = subprocess.run(_cilseg(["list", "--json"]), cwd=tmp_path, capture_output=True, text=True, check=True)
    versions = {row["ref"]: row for row in json.loads(listing.stdout)}
    assert list(versions) == ["shapes:1", "shapes:2"]
    served = "shapes:2" if codes["validate"] == 0 else "shapes:1"
    assert "production" in versions[served]["aliases"]
    assert (tmp_path / "out/masks/val_00000.png").read_bytes() == (tmp_path / "mask.png").read_bytes()

    for page in ("tag-lists.md", "embedding.md", "export.md"):
        marked = [block for block in blocks(DOCS / page) if block.run]
        assert marked
        for block in marked:
            list(_run(block, tmp_path, verdict=None))
    assert (tmp_path / "overlay.jpg").is_file()
    assert len(json.loads((tmp_path / "fish.json").read_text())["images"]) == 20


def _run(block: Block, folder: Path, *, verdict: int | None) -> Iterator[tuple[str, int]]:
    """Run one block in ``folder``; yield verb and exit code of each command."""
    if block.language == "python":
        _call([sys.executable, "-c", block.text], folder, allowed={0})
        return
    for words in block.commands:
        assert words[0] == "cilseg", f"only cilseg commands are run, got {words}"
        verb = words[1]
        allowed = {0}
        if verb in ("update", "validate") and "--dry-run" not in words:
            allowed = {0, 3}
        elif verb == "promote":
            assert verdict is not None
            allowed = {verdict}
        yield verb, _call(_cilseg([*words[1:], *SMALLER.get(verb, [])]), folder, allowed=allowed)


def _call(command: list[str], folder: Path, *, allowed: set[int]) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "CILSEG_REGISTRY"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in allowed, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.returncode


def _cilseg(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "cilseg.cli.main", *words]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_line_parses(words: list[str]) -> None:
    command, arguments = _verb(words)
    command.make_context(words[1], list(arguments))  # raises on unknown options, missing arguments and wrong types
    if words[1:3] == ["bench", "protocol"]:
        load_protocol(words[3], [b for a, b in itertools.pairwise(words) if a == "--set"])
        return
    preset = next((b for a, b in itertools.pairwise(words) if a in ("--config", "-c")), None)
    overrides = [b for a, b in itertools.pairwise(words) if a == "--set"]
    load_config(preset if preset and not preset.endswith(".yaml") else None, overrides)


@pytest.mark.parametrize("words", MENTIONS)
def test_a_mentioned_command_exists(words: list[str]) -> None:
    known = {name for parameter in _verb(words)[0].params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    options = [word for word in words[2:] if word.startswith("-")]
    assert set(options) <= known, f"{words[1]} has {sorted(known)}"


def _verb(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that ``words`` name, and the words that are left for it."""
    command, rest = get_command(app), words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"no verb {rest[0]!r}, there are {', '.join(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _all_verbs(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all_verbs(below)


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 20
    assert len(MENTIONS) > 5


def test_every_option_mentioned_alone_exists_on_some_verb() -> None:
    known = {
        name
        for verb in _all_verbs(get_command(app))
        for parameter in verb.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for page in PAGES:
        for option in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", page.read_text(encoding="utf-8")):
            assert option in known, f"{page}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert not target.startswith("http"), f"{page}: {target} leads out of the repository"
        assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=lambda b: f"{b.page.stem}-{b.language}")
def test_a_block_is_well_formed(block: Block, tmp_path: Path) -> None:
    if block.language == "python":
        compile(block.text, str(block.page), "exec")
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        content = yaml.safe_load(block.text)
        if "methods" in content:
            (tmp_path / "protocol.yaml").write_text(block.text)
            load_protocol(tmp_path / "protocol.yaml")
        elif "tolerance_points" in content:
            (tmp_path / "policy.yaml").write_text(block.text)
            load_policy(tmp_path / "policy.yaml", configs=ROOT / "configs")
        else:
            load_config(None, base=content)
    elif block.language == "bash":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for words in block.commands:
            assert words[0] in ("cilseg", "make", "pip", "curl"), words
            assert words[0] != "make" or words[1] in targets, words
    else:
        assert block.language == "text", f"{block.page}: a block in {block.language!r}"


def test_the_configuration_page_has_every_key_with_its_default() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    sections = dict(_nested_optimisers())
    rows = re.findall(r"^\| `([a-z0-9_.-]+)` \| `([^`]*)` \| (\S.*) \|$", page, re.MULTILINE)
    told = {key: yaml.safe_load(default) for key, default, _ in rows if key not in sections}
    assert len(told) + len(sections) == len(rows)
    options = [leaf for name, method in METHODS.items() for leaf in _leaves(method.options_type(), f"update.{name}.")]
    # The first round of `tags` has WILSON's options; the page tells the defaults that differ.
    wilson = {("update.tags.first." + key, str(value)) for key, value in _leaves(METHODS["wilson"].options_type())}
    options = [(key, value) for key, value in options if (key, str(value)) not in wilson]
    own = {key: value for key, value in options if key.rpartition(".")[0] not in sections}
    assert told == dict(_leaves(Config())) | own


def test_the_configuration_page_has_what_differs_in_nested_optimisers() -> None:
    """Their keys are those of ``train.optimiser``; one table says which defaults differ."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    head, *rows = [line for line in page.splitlines() if line.startswith(("| section |", "| `update."))]
    while not head.startswith("| section |"):
        head, *rows = rows
    keys = re.findall(r"`([^`]*)`", head)
    sections = dict(_nested_optimisers())
    told = {}
    for name, *values in (re.findall(r"`([^`]*)`", row) for row in rows[: len(sections)]):
        told[name] = OptimiserConfig(**dict(zip(keys, map(yaml.safe_load, values), strict=True)))
    assert told == sections


def _nested_optimisers() -> Iterator[tuple[str, OptimiserConfig]]:
    for name, method in METHODS.items():
        for key, value in method.options_type():
            if isinstance(value, OptimiserConfig):
                yield f"update.{name}.{key}", value


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def test_the_protocols_page_has_every_preset_and_setting() -> None:
    page = (DOCS / "protocols.md").read_text(encoding="utf-8")
    for name in (*protocol_names(), *SETTINGS, *Settings.model_fields):
        assert f"`{name}`" in page, name


def test_the_methods_page_has_every_method() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert {name: rows[name].strip() for name in METHODS} == {n: m.supervision for n, m in METHODS.items()}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    told = {int(n) for n in re.findall(r"^\| (\d+) \| ", README.read_text(encoding="utf-8"), re.MULTILINE)}
    raised = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.CilsegError)}
    assert told == raised | {0, 130}
