"""InferenceGraph: outputs, any size, prediction at the image's own size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_stand_in import CLASSES, make_graph, make_image

from cilseg.errors import InputError


def test_outputs_come_in_contract_order_with_contract_types():
    graph = make_graph("logits", "mask", "confidence")
    image = torch.from_numpy(np.stack([make_image(37, 51, seed=s) for s in (1, 2)]))
    mask, confidence, logits = graph(image)
    assert graph.outputs == ("mask", "confidence", "logits")
    assert (mask.shape, mask.dtype) == ((2, 37, 51), torch.uint8)
    assert (confidence.shape, confidence.dtype) == ((2, 37, 51), torch.float32)
    assert (logits.shape, logits.dtype) == ((2, len(CLASSES), 5, 7), torch.float32)
    assert len(mask.unique()) > 2, "a constant mask would make every later comparison worthless"
    probabilities = graph.upsample(logits, 37, 51).softmax(dim=1)
    torch.testing.assert_close(probabilities.gather(1, mask.long()[:, None])[:, 0], confidence)


def test_padding_is_zero_after_normalisation_and_cropped_away():
    graph = make_graph("logits")
    image = make_image(40, 56, seed=3)
    grey = np.full((48, 64, 3), 120, dtype=np.uint8)  # normalises to zero
    grey[:33, :50] = image[:33, :50]
    (cropped,) = graph(torch.from_numpy(image[None, :33, :50].copy()))
    (padded,) = graph(torch.from_numpy(grey[None, :40, :56].copy()))
    torch.testing.assert_close(cropped, padded)


@pytest.mark.parametrize("outputs", [("masks",), ("mask", "mask")])
def test_unknown_or_repeated_outputs_are_refused(outputs):
    with pytest.raises(InputError, match="some of mask, confidence, logits"):
        make_graph(*outputs)


def test_predict_resizes_for_the_network_and_back():
    graph = make_graph("logits")
    image = make_image(96, 150, seed=4)
    mask = graph.predict(image)
    assert (mask.shape, mask.dtype) == ((96, 150), np.uint8)
    half = graph.predict(make_image(48, 75, seed=4))  # exactly the network's size
    assert half.shape == (48, 75)
    assert (mask[::2, ::2] == half).mean() > 0.95


def test_predict_answers_in_evaluation_mode_and_restores_training_modes():
    graph = make_graph()
    image = make_image(48, 60, seed=5)
    expected = graph.predict(image)
    graph.train()
    graph.model.stem[1].eval()  # a frozen norm inside a training model
    np.testing.assert_array_equal(graph.predict(image), expected)
    assert graph.training
    assert graph.model.stem.training
    assert not graph.model.stem[1].training


def test_predict_refuses_what_is_no_image():
    with pytest.raises(InputError, match="uint8"):
        make_graph().predict(np.zeros((4, 4), dtype=np.uint8))
