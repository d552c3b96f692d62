"""The compat graph, read the way its readers do: their rules, restated here from their sources."""

from __future__ import annotations

import ast
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_stand_in import CLASSES, make_graph, make_image, make_manifest

from cilseg.classes import ClassSet
from cilseg.errors import InputError
from cilseg_export.compat import CompatRuntime, dialects, export_compat
from cilseg_export.parity import check_parity

SIDE = 64
IMAGE = make_image(SIDE, SIDE, seed=3)


@pytest.fixture(scope="module")
def compat(tmp_path_factory):
    path, manifest = tmp_path_factory.mktemp("compat") / "model.compat.onnx", make_manifest()
    graph = make_graph("mask")
    record = export_compat(graph, path, manifest=manifest, version_digest=manifest.digest, side_px=SIDE)
    return graph, path, record


@pytest.fixture(scope="module")
def expected(compat):
    """Mask ``(S, S)`` of the trained model."""
    with torch.inference_mode():
        return compat[0](torch.from_numpy(IMAGE[None]))[0][0].numpy()


def read(path):
    session = onnxruntime.InferenceSession(str(path))
    return session, session.get_modelmeta().custom_metadata_map


def test_ultralytics_reads_it(compat, expected):
    """AutoBackend: every key is cast, five are required; pixels are divided by 255, RGB, NCHW."""
    session, meta = read(compat[1])
    for key in ("stride", "task", "batch", "imgsz", "names"):
        assert key in meta
    stride, batch, channels = (int(meta[key]) for key in ("stride", "batch", "channels"))
    imgsz, names, args = (ast.literal_eval(meta[key]) for key in ("imgsz", "names", "args"))
    assert meta["task"] in ("detect", "segment", "semantic", "classify", "pose", "obb")
    assert (stride, batch, channels, imgsz) == (8, 1, 3, [SIDE, SIDE])
    assert sorted(map(int, names)) == list(range(len(names)))
    assert names == dict(enumerate(CLASSES.names))
    assert args["dynamic"] is False
    assert not set(meta) & {"model", "session", "device", "fp16", "metadata", "dynamic"}  # attributes of its backend
    assert session.get_inputs()[0].name == "images"
    pixels = IMAGE.transpose(2, 0, 1)[None].astype(np.float32) / 255
    (scores,) = session.run(None, {"images": pixels})
    assert (scores.argmax(axis=1)[0] == expected).mean() > 0.999


def test_deepness_reads_it(compat, expected):
    """ModelBase and Segmentor: all values are JSON, sizes come from the shapes, standardisation follows /255."""
    session, meta = read(compat[1])
    assert json.loads(meta["model_type"]).capitalize() == "Segmentor"
    names = {int(i): name for i, name in json.loads(meta["class_names"]).items()}
    assert names == dict(enumerate(CLASSES.names))
    assert json.loads(meta["tile_size"]) == json.loads(meta["tiles_size"]) == SIDE
    mean, std = (np.array(json.loads(meta[f"standardization_{k}"]), np.float32) for k in ("mean", "std"))
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert given.type == "tensor(float)"
    assert given.shape[-3] == len(mean) == 3
    assert given.shape[-1] == given.shape[-2] == SIDE
    assert output.shape[-3] == len(names)
    pixels = (IMAGE.astype(np.float32) / 255 - mean) / std
    (scores,) = session.run(None, {given.name: pixels.transpose(2, 0, 1)[None]})
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert (scores[0].argmax(axis=0) == expected).mean() > 0.999


def test_model_api_reads_it(compat, expected):
    """load_parameters_from_onnx and SegmentationModel: keys are paths joined by a space, images come as BGR."""
    session, meta = read(compat[1])
    info = {key.split()[1]: value for key, value in meta.items() if key.split()[0] == "model_info"}
    assert info["model_type"].lower() == "segmentation"
    labels = info["labels"].split()
    assert labels == list(CLASSES.foreground)  # contours use labels[index - 1]
    assert not all(label.isdigit() for label in labels)
    mean, scale = (np.array([float(v) for v in info[k].split()], np.float32) for k in ("mean_values", "scale_values"))
    assert info["reverse_input_channels"] in ("YES", "True")
    assert info["resize_type"] in ("standard", "crop", "fit_to_window", "fit_to_window_letterbox")
    name, _, layout = info["layout"].partition(":")
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (name, layout) == (given.name, "NCHW")
    assert all(isinstance(side, int) for side in given.shape)
    assert given.shape[1] in range(1, 5)
    assert len(output.shape) == 4
    assert output.shape[1] > 1
    bgr = IMAGE[..., ::-1]
    pixels = (bgr[..., ::-1].astype(np.float32) - mean) / scale
    (scores,) = session.run(None, {name: pixels.transpose(2, 0, 1)[None]})
    assert (scores[0].argmax(axis=0) == expected).mean() > 0.999


def test_labels_with_blanks_stay_one_word():
    classes = ClassSet.base(["traffic light", "cow"])
    assert dialects(classes, stride=16, side_px=64)["model_info labels"] == "traffic_light cow"


def test_it_has_our_manifest_too_and_passes_the_parity_check(compat, tmp_path):
    graph, path, record = compat
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert record.outputs == ("scores",)
    report = check_parity(
        graph,
        path,
        [IMAGE],
        out_dir=tmp_path,
        runtime=CompatRuntime(path),
        batches=(1,),
        sizes=lambda *_: ((SIDE, SIDE),),
        label="compat",
    )
    report.raise_if_failed()
    assert report.json_path.name == "parity.compat.json"
    assert [(c.batch, c.size_hw) for c in report.cases] == [(1, (SIDE, SIDE))]
    assert all(c.confidence_error < 1e-4 for c in report.cases)


@pytest.mark.parametrize("side", [0, 24, 100])
def test_a_side_that_does_not_fit_is_refused(tmp_path, side):
    manifest = make_manifest()
    with pytest.raises(InputError, match=f"multiple of 8 from 32 px on, got {side}. Try "):
        export_compat(
            make_graph(), tmp_path / "m.onnx", manifest=manifest, version_digest=manifest.digest, side_px=side
        )
    assert not list(tmp_path.iterdir())
