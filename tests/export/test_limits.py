"""Parity limits: what comes with the package, and files that are refused whole."""

from __future__ import annotations

import pytest

from cilseg.config import configs_directory
from cilseg.errors import InputError, NotFoundError
from cilseg_export.limits import PRECISIONS, ParityLimits, load_limits

CONFIGS = configs_directory()


def test_the_default_limits_are_those_of_the_issue():
    limits = load_limits("default", configs=CONFIGS)
    assert set(limits) == set(PRECISIONS)
    assert limits["float32"] == ParityLimits()
    assert limits["float16"].max_miou_drop == 0.1
    assert (limits["int8"].max_miou_drop, limits["int8"].max_class_drop) == (0.5, 1.0)
    assert limits["int8"].min_speedup == 1.5
    assert not limits["float32"].asks_for_masks
    assert limits["int8"].asks_for_masks


def test_every_fault_of_a_file_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("float32: {max_tied: -1}\nint8: {max_miou_dorp: 1, min_agreement: 2}\nint4: {}\n")
    with pytest.raises(InputError) as error:
        load_limits(path, configs=CONFIGS)
    for words in (
        "float32.max_tied: Input should be greater than or equal to 0 (got -1)",
        "unknown key int8.max_miou_dorp. Did you mean 'max_miou_drop'?",
        "int8.min_agreement",
        "unknown precision 'int4'. Did you mean 'int8'?",
        "no section float16",
    ):
        assert words in str(error.value)


def test_unknown_names_missing_files_and_no_yaml(tmp_path):
    with pytest.raises(NotFoundError, match=r"Unknown parity limits 'defualt'\. Did you mean 'default'\?"):
        load_limits("defualt", configs=CONFIGS)
    with pytest.raises(NotFoundError, match="do not exist"):
        load_limits(tmp_path / "no.yaml", configs=CONFIGS)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not readable YAML"):
        load_limits(tmp_path / "bad.yaml", configs=CONFIGS)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="no section int8"):
        load_limits(tmp_path / "list.yaml", configs=CONFIGS)
