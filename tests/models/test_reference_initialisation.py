"""The start of new classifiers against the published implementation's arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cilseg.errors import InputError
from cilseg.models.initialisation import background_split_init


def test_background_split(reference):
    arrays = {key: torch.from_numpy(np.asarray(array)) for key, array in reference("mib_classifier_init").items()}
    before = arrays["old_bias"].clone()
    results = background_split_init(arrays["old_weight"], arrays["old_bias"], n_new=len(arrays["new_bias"]))
    # The published code takes the logarithm of the biases in float32.
    tolerances = {"new_weight": 1e-9, "new_bias": 1e-6, "old_bias_after": 1e-6}
    for got, (key, tolerance) in zip(results, tolerances.items(), strict=True):
        torch.testing.assert_close(got, arrays[key], rtol=tolerance, atol=tolerance)
    assert torch.equal(arrays["old_bias"], before)


def test_old_probabilities_stay(reference):
    arrays = {key: torch.from_numpy(np.asarray(array)) for key, array in reference("mib_classifier_init").items()}
    weight, bias = arrays["old_weight"].flatten(1), arrays["old_bias"]
    new_weight, new_bias, bias_after = background_split_init(weight, bias, n_new=len(arrays["new_bias"]))
    feature = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    old = (weight @ feature + bias).softmax(dim=0)
    grown = torch.cat([weight @ feature + bias_after, new_weight @ feature + new_bias]).softmax(dim=0)
    torch.testing.assert_close(grown[1 : len(old)], old[1:])
    torch.testing.assert_close(grown[0] + grown[len(old) :].sum(), old[0])


def test_refusals():
    with pytest.raises(InputError, match="at least one new class, got 0"):
        background_split_init(torch.zeros(2, 3), torch.zeros(2), n_new=0)
    with pytest.raises(InputError, match="do not belong to one classifier"):
        background_split_init(torch.zeros(2, 3), torch.zeros(3), n_new=1)
