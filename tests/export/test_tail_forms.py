"""The forms of upsampling and arg-max that the benchmark compares: all give the exported graph's mask."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from export_stand_in import CLASSES, STRIDE, Exported, make_image

from benchmarks.tail_forms import find_logits, interpolation, tail_forms
from cilseg.errors import ArtifactError

HEIGHT, WIDTH = 64, 80


def run(model, image):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["mask"], {"image": image})[0]


def test_every_form_gives_the_same_mask(exported_mask: Exported):
    model = onnx.load(exported_mask.path)
    forms = tail_forms(model, n_classes=len(CLASSES), height=HEIGHT, width=WIDTH, stride=STRIDE)
    bare = forms.pop("none")
    assert len(forms) == 4
    seen: set[int] = set()
    for seed in (1, 5, 9):
        image = make_image(HEIGHT, WIDTH, seed=seed)[None]
        expected = run(model, image)
        seen |= set(np.unique(expected).tolist())
        assert run(bare, image).shape == (1, len(CLASSES), HEIGHT // STRIDE, WIDTH // STRIDE)
        for name, form in forms.items():
            mask = run(form, image)
            assert mask.dtype == np.uint8, name
            assert (mask != expected).mean() < 1e-3, name
    assert len(seen) > 1


def test_interpolation_is_that_of_resize():
    values = np.random.default_rng(0).normal(size=(1, 1, 5, 1)).astype(np.float32)
    node = onnx.helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 4, 1], dtype=np.float32), "scales")
    shapes = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], [scales])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (resized,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    np.testing.assert_allclose(interpolation(5, 4) @ values[0, 0], resized[0, 0], atol=1e-6)


def test_a_graph_without_convolutions_is_refused():
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    with pytest.raises(ArtifactError, match="no convolution"):
        find_logits(empty)
