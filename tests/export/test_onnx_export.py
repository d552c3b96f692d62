"""The exported file: graph contract, metadata, equal answers, refusals."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_stand_in import CLASSES, make_graph, make_image, make_manifest

from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg_export.metadata import read_metadata
from cilseg_export.onnx_export import IR_VERSION, OPSET, export_onnx
from cilseg_export.runtime import OnnxRuntime


def signature(value) -> tuple[str, str, list]:
    return value.name, value.type, value.shape


def test_names_types_and_dynamic_axes(exported, exported_mask):
    image = ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    mask = ("mask", "tensor(uint8)", ["batch", "height", "width"])
    session = onnxruntime.InferenceSession(str(exported.path))
    assert [signature(i) for i in session.get_inputs()] == [image]
    assert [signature(o) for o in session.get_outputs()] == [
        mask,
        ("confidence", "tensor(float)", ["batch", "height", "width"]),
        ("logits", "tensor(float)", ["batch", len(CLASSES), "stride_height", "stride_width"]),
    ]
    session = onnxruntime.InferenceSession(str(exported_mask.path))
    assert [signature(i) for i in session.get_inputs()] == [image]
    assert [signature(o) for o in session.get_outputs()] == [mask]


def test_one_valid_file_with_pinned_versions_and_a_true_record(exported):
    data = exported.path.read_bytes()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert list(exported.path.parent.iterdir()) == [exported.path]
    record = exported.record
    assert record.sha256 == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (record.size_bytes, record.opset, record.ir_version) == (len(data), OPSET, IR_VERSION)
    assert record.outputs == ("mask", "confidence", "logits")
    assert record.operators["Resize"] == 1
    json.dumps(record.to_json())


def test_class_count_is_readable_from_a_graph_with_the_mask_alone(exported_mask):
    graph = onnx.load(exported_mask.path).graph
    (arg_max,) = [node for node in graph.node if node.op_type == "ArgMax"]
    (value,) = [v for v in graph.value_info if v.name == arg_max.input[0]]
    assert value.type.tensor_type.shape.dim[1].dim_value == len(CLASSES)


def test_upsampling_is_bilinear_half_pixel_by_constant_factors(exported):
    graph = onnx.load(exported.path).graph
    (resize,) = [node for node in graph.node if node.op_type == "Resize"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in resize.attribute}
    assert (attributes["mode"], attributes["coordinate_transformation_mode"]) == (b"linear", b"half_pixel")
    (scales,) = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == resize.input[2]]
    np.testing.assert_array_equal(scales, [1, 1, 8, 8])


def test_metadata_names_classes_preprocessing_and_lineage(exported):
    metadata = read_metadata(exported.path)
    assert metadata.class_set == CLASSES
    assert metadata.preprocessing == exported.manifest.preprocessing
    assert (metadata.version, metadata.parent) == (exported.manifest.digest, exported.manifest.parent)
    assert (metadata.method, metadata.outputs) == ("wilson", ("mask", "confidence", "logits"))
    props = onnxruntime.InferenceSession(str(exported.path)).get_modelmeta().custom_metadata_map
    assert set(props) == {"cilseg.manifest", "names"}
    assert ast.literal_eval(props["names"]) == dict(enumerate(CLASSES.names))
    assert json.loads(props["cilseg.manifest"])["classes"] == CLASSES.to_json()


def test_the_file_tells_nothing_about_the_machine_it_was_made_on(exported):
    data = exported.path.read_bytes()
    assert b"stack_trace" not in data
    for folder in (Path(__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in data


@pytest.mark.parametrize("shape", [(1, 48, 64), (1, 47, 61), (3, 33, 57), (5, 17, 90), (2, 1, 1), (1, 7, 200)])
def test_answers_equal_torch_at_any_size_and_batch(exported, shape):
    images = np.stack([make_image(*shape[1:], seed=s) for s in range(shape[0])])
    answers = OnnxRuntime(exported.path).run(images)
    with torch.inference_mode():
        expected = dict(zip(exported.graph.outputs, exported.graph(torch.from_numpy(images)), strict=True))
    assert set(answers) == set(expected)
    for name in ("confidence", "logits"):
        np.testing.assert_allclose(answers[name], expected[name].numpy(), rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(answers["mask"], expected["mask"].numpy())


def test_mask_alone_equals_the_mask_of_the_full_graph(exported, exported_mask):
    images = make_image(45, 70, seed=9)[None]
    mask = OnnxRuntime(exported_mask.path).run(images)
    assert set(mask) == {"mask"}
    np.testing.assert_array_equal(mask["mask"], OnnxRuntime(exported.path).run(images)["mask"])
    assert len(np.unique(mask["mask"])) > 2


def test_another_class_count_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    manifest = make_manifest(ClassSet.base(["cat", "dog"]))
    with pytest.raises(ArtifactError, match=r"has 5 classes, the manifest names 3 .*own checkpoint") as error:
        export_onnx(make_graph(), path, manifest=manifest, version_digest=manifest.digest)
    assert error.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_training_mode_and_other_precisions_are_refused(tmp_path):
    manifest = make_manifest()
    for graph, words in ((make_graph().train(), r"training mode .*eval\(\)"), (make_graph().double(), "not float32")):
        with pytest.raises(InputError, match=words):
            export_onnx(graph, tmp_path / "model.onnx", manifest=manifest, version_digest=manifest.digest)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_refused_in_words(tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise RuntimeError("step 3/3") from NotImplementedError("no ONNX function for aten.frobnicate")

    monkeypatch.setattr(torch.onnx, "export", unsupported)
    graph, manifest = make_graph(), make_manifest()
    with pytest.raises(ArtifactError, match=r"cannot export .* opset 18: NotImplementedError: no ONNX .*frobnicate"):
        export_onnx(graph, tmp_path / "model.onnx", manifest=manifest, version_digest=manifest.digest)
    assert list(tmp_path.iterdir()) == []


def test_reading_metadata_of_foreign_damaged_and_missing_files(exported, tmp_path):
    foreign = onnx.load(exported.path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match=r"not exported by cilseg.*cilseg export"):
        read_metadata(tmp_path / "foreign.onnx")
    onnx.helper.set_model_props(foreign, {"cilseg.manifest": '{"schema": "cilseg.onnx/9"}'})
    onnx.save(foreign, tmp_path / "newer.onnx")
    with pytest.raises(ArtifactError, match="another version of cilseg"):
        read_metadata(tmp_path / "newer.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cut short"):
        read_metadata(tmp_path / "cut.onnx")
    with pytest.raises(ArtifactError, match="cannot load"):
        OnnxRuntime(tmp_path / "cut.onnx")
    for read in (read_metadata, OnnxRuntime):
        with pytest.raises(NotFoundError, match="cilseg export"):
            read(tmp_path / "nowhere.onnx")
