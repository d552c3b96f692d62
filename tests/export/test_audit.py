"""The operator audit: our graphs pass, and what TensorRT or OpenVINO do not take is named with its node."""

from __future__ import annotations

import onnx
import pytest
import torch
from export_stand_in import TinyModel, make_manifest
from onnx import helper, numpy_helper
from torch import Tensor

from cilseg.errors import ArtifactError
from cilseg.models.inference import InferenceGraph
from cilseg_export.audit import ENGINES, audit, operator_lists, refuse_unsupported
from cilseg_export.onnx_export import OPSET, export_onnx


def test_the_lists_have_a_source_and_cover_our_opset():
    for published in operator_lists().values():
        assert published.version
        assert published.source.startswith("github.com/")
        assert published.opset[0] <= OPSET <= published.opset[1]
        assert {"Conv", "Resize", "ArgMax", "QuantizeLinear"} <= published.operators
    assert "NonZero" in operator_lists()["tensorrt"].operators
    assert "BitwiseAnd" not in operator_lists()["tensorrt"].operators
    assert "BitwiseAnd" in operator_lists()["openvino"].operators


def test_an_exported_graph_passes_and_says_so(exported):
    assert audit(onnx.load(exported.path)) == dict.fromkeys(ENGINES, ())
    assert set(exported.record.audit) == set(ENGINES)
    assert "TensorRT 10.15" in exported.record.audit["tensorrt"]


class Masking(TinyModel):
    """Uses an operator that OpenVINO has and TensorRT lacks."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward((image.int() & 254).float())


def test_a_network_with_an_unsupported_operator_is_refused_by_node(tmp_path):
    manifest = make_manifest()
    graph = InferenceGraph(Masking().eval(), manifest.preprocessing, outputs=("mask",))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ArtifactError) as error:
        export_onnx(graph, path, manifest=manifest, version_digest=manifest.digest)
    assert "(BitwiseAnd): not on the list of supported operators (TensorRT 10.15, github.com/onnx" in str(error.value)
    assert "node 'node_" in str(error.value)
    assert "OpenVINO" not in str(error.value)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("Resize", ["x", "", "s"], ["y"], name="r", antialias=1), "node 'r' .*antialias=1"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], name="r", mode="cubic"), "node 'r' .*mode=cubic"),
        (helper.make_node("DequantizeLinear", ["x", "s", "zp"], ["y"], name="q"), "node 'q' .*zero point.*--symmetric"),
        (helper.make_node("DequantizeLinear", ["b", "s"], ["y"], name="q"), "node 'q' .*bias in 32-bit integers"),
        (helper.make_node("Gelu", ["x"], ["y"], name="g", domain="com.microsoft"), "node 'g' .*foreign domain"),
    ],
)
def test_what_the_lists_say_about_arguments(node, words):
    constants = [
        numpy_helper.from_array(torch.tensor([1.0, 1.0, 2.0, 2.0]).numpy(), "s"),
        numpy_helper.from_array(torch.tensor(3, dtype=torch.uint8).numpy(), "zp"),
        numpy_helper.from_array(torch.tensor([1, 2], dtype=torch.int32).numpy(), "b"),
    ]
    graph = helper.make_graph([node], "g", [], [], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    with pytest.raises(ArtifactError, match=words):
        refuse_unsupported(model, engines=("tensorrt",))


def test_an_opset_beyond_the_list_is_refused(exported):
    model = onnx.load(exported.path)
    model.opset_import[0].version = 30
    with pytest.raises(ArtifactError, match=r"opset 30.*opsets 9 to 24 are read"):
        refuse_unsupported(model, engines=("tensorrt",))
