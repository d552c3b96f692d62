"""The story told by the command line, without naming a registry or a version where there is one model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Commands, Story

from cilseg.registry import Registry


def test_train_registers_and_serves_the_first_version(story: Story) -> None:
    answer = story.answers["train"]
    assert answer.out == "shapes:1\n"
    assert "mIoU on 24 images of val" in answer.err
    assert Registry.open(story.root / "cwd" / "cilseg-registry").resolve("shapes@production").number == 1
