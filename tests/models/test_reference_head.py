"""DeepLabV3 head and localizer against the published implementation's arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cilseg.models.head import DeepLabV3Head, Localizer

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def head_case(reference):
    """The stored head in float64, its arrays, and the width of its pooling window."""
    arrays = {key: torch.from_numpy(np.asarray(array)) for key, array in reference("deeplabv3_head").items()}
    state = {re.sub(r"^map_convs_(\d+)_", r"map_convs.\1.", k[2:]): v for k, v in arrays.items() if k.startswith("p_")}
    modules = ("map_bn", "global_pooling_conv", "global_pooling_bn", "red_conv", "pool_red_conv", "red_bn")
    for module in modules:
        state = {re.sub(rf"^{module}_", f"{module}.", key): value for key, value in state.items()}
    window = next(int(m[1]) for key in arrays if (m := re.fullmatch(r"out_eval_pool(\d+)", key)))
    hidden, in_channels = state["map_convs.0.weight"].shape[:2]
    n_dilated = sum(key.startswith("map_convs.") for key in state) - 1
    head = DeepLabV3Head(
        in_channels,
        hidden_channels=hidden,
        out_channels=len(state["red_conv.weight"]),
        dilations=[6 * (i + 1) for i in range(n_dilated)],
        pool_window=window,
    ).double()
    return head, state, arrays, window


def test_head_in_evaluation_with_the_published_pooling_window(head_case):
    head, state, arrays, window = head_case
    head.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(head.eval()(arrays["feat"]), arrays[f"out_eval_pool{window}"], **TOLERANCE)


def test_head_in_training(head_case):
    head, state, arrays, _ = head_case
    head.load_state_dict(state)
    torch.testing.assert_close(head.train()(arrays["feat"]).detach(), arrays["out_train"], **TOLERANCE)
    torch.testing.assert_close(  # one training pass moves the statistics by the momentum of 0.1
        head.map_bn.running_mean,
        0.9 * state["map_bn.running_mean"] + 0.1 * _branches(head, arrays["feat"]).mean(dim=(0, 2, 3)),
        **TOLERANCE,
    )


def test_the_window_is_only_an_option_of_evaluation(head_case):
    head, state, arrays, window = head_case
    head.load_state_dict(state)
    head.pool_window = None
    with torch.no_grad():
        global_mean = head.eval()(arrays["feat"])
    head.pool_window = window
    assert (global_mean - arrays[f"out_eval_pool{window}"]).abs().max() > 1e-3


def test_localizer(reference):
    arrays = {key: torch.from_numpy(np.asarray(array)) for key, array in reference("wilson_localizer_forward").items()}
    # The published norm layers hold their activation, so their layers count 0 to 4, ours 0 to 6.
    place = {"0": "0", "1": "1", "2": "3", "3": "4", "4": "6"}
    state = {f"{place[k[2]]}.{k[4:]}": v for k, v in arrays.items() if k.startswith("p_")}
    hidden, in_channels = state["0.weight"].shape[:2]
    localizer = Localizer(in_channels, n_classes=len(state["6.bias"]), hidden_channels=hidden).double()
    localizer.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(localizer.eval()(arrays["feat"]), arrays["out_eval"], **TOLERANCE)
    torch.testing.assert_close(localizer.train()(arrays["feat"]).detach(), arrays["out_train"], **TOLERANCE)
    after = localizer.state_dict()
    checked = [key for key in arrays if key.startswith("after_")]
    assert checked
    for key in checked:
        torch.testing.assert_close(after[f"{place[key[6]]}.{key[8:]}"], arrays[key], **TOLERANCE)


def _branches(head, feat):
    with torch.no_grad():
        return torch.cat([conv(feat) for conv in head.map_convs], dim=1)
