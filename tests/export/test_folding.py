"""Batch norms after a concatenation or a sum of convolutions go into the convolutions; answers stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cilseg_export.folding import fold_batch_norms
from cilseg_export.runtime import open_model

RNG = np.random.default_rng(5)


def network(joint: str, *, biased: bool, shared: bool = False) -> onnx.ModelProto:
    """Two convolutions of 4 channels, joined, normed; ``shared`` also returns the joined tensor itself."""
    width = 8 if joint == "Concat" else 4
    constants = {f"w{i}": RNG.standard_normal((4, 3, 1, 1)) for i in range(2)}
    constants |= {f"b{i}": RNG.standard_normal(4) for i in range(2)} if biased else {}
    constants |= {"gamma": RNG.standard_normal(width), "beta": RNG.standard_normal(width)}
    constants |= {"mean": RNG.standard_normal(width), "variance": RNG.random(width) + 0.1}
    attributes = {"axis": 1} if joint == "Concat" else {}
    nodes = [
        helper.make_node("Conv", ["x", f"w{i}", *([f"b{i}"] if biased else [])], [f"c{i}"], name=f"conv{i}")
        for i in range(2)
    ]
    nodes.append(helper.make_node(joint, ["c0", "c1"], ["joined"], name="join", **attributes))
    norm = ["joined", "gamma", "beta", "mean", "variance"]
    nodes.append(helper.make_node("BatchNormalization", norm, ["y"], name="norm", epsilon=0.01))
    outputs = ["y", *(["joined"] if shared else [])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


@pytest.mark.parametrize("joint", ["Concat", "Add"])
@pytest.mark.parametrize("biased", [False, True])
def test_answers_stay_and_the_norm_goes(joint, biased):
    model = network(joint, biased=biased)
    before = model.SerializeToString()
    folded = fold_batch_norms(model)
    assert model.SerializeToString() == before
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Conv", joint]
    assert not {"gamma", "variance"} & {tensor.name for tensor in folded.graph.initializer}
    x = RNG.standard_normal((1, 3, 5, 5)).astype(np.float32)
    (expected,), (given,) = (open_model(m).run(["y"], {"x": x}) for m in (model, folded))
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_a_norm_whose_input_is_used_elsewhere_stays():
    folded = fold_batch_norms(network("Add", biased=True, shared=True))
    assert "BatchNormalization" in [node.op_type for node in folded.graph.node]
