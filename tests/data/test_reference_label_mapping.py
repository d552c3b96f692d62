"""Label and tag mapping against arrays made with the published WILSON data set classes."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from cilseg.data.protocol import map_labels, select_tags, step_sizes_of

REFERENCE = Path(os.environ.get("CILSEG_REFERENCE_DIR", Path(__file__).parents[1] / "reference"))
ARRAYS = dict(np.load(REFERENCE / "label_and_tag_mapping.npz"))
KEY = re.compile(r"(?P<what>label|tags)_(?P<base>\d+)_(?P<increment>\d+)_s(?P<step>\d+)_(?P<mode>\w+)")
KEYS = [key for key in ARRAYS if key not in ("label", "tags")]


def test_every_array_has_a_case():
    assert KEYS
    assert all(KEY.fullmatch(key) for key in KEYS)
    assert {key.split("_")[0] for key in KEYS} == {"label", "tags"}


@pytest.mark.parametrize("key", KEYS)
def test_mapping(key):
    match = KEY.fullmatch(key)
    n_classes = ARRAYS["tags"].shape[1]
    function = map_labels if match["what"] == "label" else select_tags
    got = function(
        ARRAYS[match["what"]],
        range(1, n_classes + 1),
        step_sizes=step_sizes_of(f"{match['base']}-{match['increment']}", n_classes=n_classes),
        step=int(match["step"]),
        mode=match["mode"],
    )
    np.testing.assert_array_equal(got, ARRAYS[key])
