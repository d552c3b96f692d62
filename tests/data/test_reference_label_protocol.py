"""Training sets and label mappings of MiB, SDR and PLOP against the published implementations."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cilseg.data.protocol import IncrementalProtocol, map_labels, step_sizes_of

N_CLASSES = 20  # PASCAL VOC
POLICIES = {
    ("mib", "train"): {},
    ("mib", "test"): {"others": "void"},
    ("plop", "train"): {"void_as_background": False},
    ("plop", "test"): {},
}


def test_every_array_is_compared(reference):
    names = set(reference("pixel_label_protocol")) - {"labels"}
    kinds = {re.sub(r"\d+_\d+_s\d+", "*", name) for name in names}
    tables = {f"{code}_*_{mode}_lut" for code, mode in POLICIES}
    assert kinds == tables | {"keep_*_overlap", "keep_*_disjoint"}


@pytest.mark.parametrize("rule", ["overlap", "disjoint"])
def test_images_of_a_step(reference, rule):
    arrays = reference("pixel_label_protocol")
    tags = [frozenset(str(v) for v in np.unique(mask) if 0 < v < 255) for mask in arrays["labels"]]
    compared = 0
    for name, wanted in arrays.items():
        if match := re.fullmatch(rf"keep_(\d+)_(\d+)_s(\d+)_{rule}", name):
            sizes = step_sizes_of(f"{match[1]}-{match[2]}", n_classes=N_CLASSES)
            protocol = IncrementalProtocol(tuple(map(str, range(1, N_CLASSES + 1))), sizes, rule)
            np.testing.assert_array_equal(protocol.split(tags)[int(match[3])], wanted, err_msg=name)
            compared += 1
    assert compared


@pytest.mark.parametrize(("code", "mode"), POLICIES)
def test_mapping(reference, code, mode):
    arrays = reference("pixel_label_protocol")
    values = np.array([*range(N_CLASSES + 1), 255], dtype=np.uint8)
    compared = 0
    for name, table in arrays.items():
        if match := re.fullmatch(rf"{code}_(\d+)_(\d+)_s(\d+)_{mode}_lut", name):
            got = map_labels(
                values,
                range(1, N_CLASSES + 1),
                step_sizes=step_sizes_of(f"{match[1]}-{match[2]}", n_classes=N_CLASSES),
                step=int(match[3]),
                mode=mode,
                **POLICIES[code, mode],
            )
            np.testing.assert_array_equal(got, table[values], err_msg=name)
            compared += 1
    assert compared
