"""What somebody sees who types --help."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cli_story import Commands

from cilseg.cli.main import VERBS
from cilseg.config import preset_names

EXAMPLE = re.compile(r"^ *(cilseg .*?) *$", re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_a_runnable_example(cilseg: Commands, verb: str) -> None:
    answer = cilseg(verb, "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.strip().startswith(f"Usage: cilseg {verb}")
    text = re.sub(r"[│╭╰╮╯─]", " ", answer.out)
    mine = [line for line in EXAMPLE.findall(text) if line.startswith(f"cilseg {verb}")]
    assert mine, text
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text.split("Options", 1)[1]))
    for line in mine:
        for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line):
            assert option in known, line


def test_overview_names_every_verb(cilseg: Commands) -> None:
    overview = cilseg("--help").out
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}\b", overview, re.MULTILINE), verb
    assert "Start with:  cilseg demo" in overview


def test_a_group_and_its_verbs_explain_themselves(cilseg: Commands) -> None:
    assert re.search(r"^\W*bench\b", cilseg("--help").out, re.MULTILINE)
    assert re.search(r"^\W*protocol\b", cilseg("bench", "--help").out, re.MULTILINE)
    answer = cilseg("bench", "protocol", "--help")
    assert answer.code == 0
    assert "cilseg bench protocol scenes-6-2" in answer.out


def test_lines_of_a_paragraph_are_joined_and_those_of_examples_stay(cilseg: Commands) -> None:
    text = cilseg("update", "--help").out
    assert "--data and --classes are for methods that learn from masks." in text
    assert len(re.findall(r"^ +cilseg update .*$", text, re.MULTILINE)) == 3


def test_presets_in_the_help_are_those_there_are(cilseg: Commands) -> None:
    assert f"Preset ({', '.join(preset_names())})" in cilseg("train", "--help").out


def test_misspelt_verbs_and_options(cilseg: Commands) -> None:
    verb = cilseg("tran")
    assert verb.code == 2
    assert "No such command 'tran'. Did you mean 'train'?" in verb.err
    option = cilseg("train", "shapes", "--dta", "scenes")
    assert option.code == 2
    assert "--dta" in option.err
    assert "--data" in option.err
    name = cilseg("train")
    assert name.code == 2
    assert "Missing argument 'NAME'" in name.err


def test_help_loads_no_torch() -> None:
    code = """
import sys
from cilseg.cli.main import run
sys.argv = ["cilseg", "--help"]
try:
    run()
except SystemExit:
    print([name for name in ("torch", "numpy", "sqlalchemy", "onnxruntime", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-200:]
