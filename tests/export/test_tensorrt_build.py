"""TensorRT engines, through a stand-in that has only the names of the real bindings (tests/tensorrt_stand_in)."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from export_stand_in import Exported, make_image

from cilseg.bundle import Preprocessing
from cilseg.errors import ArtifactError, CilsegError, InputError, MissingDependencyError
from cilseg_export import tensorrt_build
from cilseg_export.parity import check_parity
from cilseg_export.runtime import BackendRuntime, OnnxRuntime
from cilseg_export.tensorrt_build import build_engine, default_profile, parse_profile
from cilseg_export.tensorrt_graph import for_tensorrt
from cilseg_serve.backends import cudart
from cilseg_serve.backends.engine_file import Profile, read_engine
from cilseg_serve.backends.opening import open_session
from tests.tensorrt_stand_in.fake_cuda import SYMBOLS, FakeCuda
from tests.tensorrt_stand_in.fake_tensorrt import VERSIONS, fake_tensorrt, load_api

PROFILE = Profile(name="small", min=(1, 16, 16), opt=(1, 60, 80), max=(4, 120, 120))


class Machine:
    """A machine with TensorRT and a GPU, both stand-ins."""

    def __init__(self, monkeypatch, tmp_path, version, **gpu):
        self.cuda, self.builds = FakeCuda(major=int(version.split(".")[0]) + 2, **gpu), []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(cudart, "_load", lambda: self.cuda)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        self.install(version)

    def install(self, version):
        module = fake_tensorrt(version, self.cuda, build_log=self.builds)
        self._monkeypatch.setitem(__import__("sys").modules, "tensorrt", module)


@pytest.fixture(params=VERSIONS)
def machine(request, monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path, request.param)


def test_names_of_both_majors_are_at_hand():
    assert [v.split(".")[0] for v in VERSIONS] == ["10", "11"]
    ten, eleven = (set(load_api(v)["classes"]["BuilderFlag"]) for v in VERSIONS)
    assert {"FP16", "INT8"} <= ten - eleven, "what 11 removed must fail in the stand-in for 11"


@pytest.mark.usefixtures("machine")
def test_the_stand_in_refuses_what_the_real_bindings_do_not_have():
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    with pytest.raises(AttributeError, match="no attribute 'make_engine'"):
        trt.make_engine  # noqa: B018
    config = trt.Builder(logger).create_builder_config()
    with pytest.raises(AttributeError, match="IBuilderConfig has no attribute 'max_workspace_size'"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match="_name"):
        trt.Builder(logger)._name  # noqa: B018
    with pytest.raises(TypeError, match="set_timing_cache"):
        config.set_timing_cache(config.create_timing_cache(b""))


def test_every_function_of_cuda_that_is_called_is_exported_by_the_real_libraries():
    for library, symbols in SYMBOLS.items():
        assert set(cudart.FUNCTIONS) <= set(symbols), library


def test_an_engine_answers_like_the_network(machine, exported: Exported, tmp_path):
    built = build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    assert not built.reused
    session = open_session(built.path, backend="tensorrt")
    assert session.describe().version == built.record.tensorrt
    images = [make_image(60, 80, seed=1), make_image(75, 51, seed=2)]
    report = check_parity(
        exported.graph,
        exported.path,
        images,
        out_dir=tmp_path / "parity",
        runtime=BackendRuntime(session),
        batches=(PROFILE.min[0], PROFILE.max[0]),
    )
    report.raise_if_failed()
    assert report.runtime["runtime"] == "tensorrt"
    assert report.runtime["precision"] == "float32 (strongly typed, CUDA graphs)"
    assert machine.cuda.launches == len({(c.size_hw, c.batch, c.image) for c in report.cases if c.batch == 1}) + 3
    session.close()
    assert machine.cuda.memory == {}
    assert machine.cuda.graphs == {}
    assert machine.cuda.streams == {}


def test_the_build_is_strongly_typed_without_tf32_and_with_the_named_profile(machine, exported: Exported, tmp_path):
    build_engine(exported.path, tmp_path, profile=PROFILE)
    build_engine(exported.path, tmp_path, profile=PROFILE, version_compatible=True, hardware="AMPERE_PLUS")
    plain, compatible = machine.builds
    assert plain["strongly_typed"]
    assert plain["flags"] == []
    assert plain["hardware"] == "NONE"
    assert plain["profiles"] == [{"image": [[1, 16, 16, 3], [1, 60, 80, 3], [4, 120, 120, 3]]}]
    assert compatible["flags"] == ["VERSION_COMPATIBLE"]
    assert compatible["hardware"] == "AMPERE_PLUS"


def test_engine_and_sidecar_lie_side_by_side_and_the_same_key_is_not_built_twice(machine, exported, tmp_path):
    built = build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    assert sorted(p.name for p in (tmp_path / "engines").iterdir()) == [built.path.name, built.path.name + ".json"]
    data, record = read_engine(built.path)
    assert json.loads(data)["tensorrt"] == record.tensorrt, "nothing is put before what TensorRT wrote"
    assert record.onnx_sha256 == exported.record.sha256
    assert record.compute_capability == "9.0"
    assert record.metadata["names"].startswith("{0: 'background'")
    again = build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    assert again.reused
    assert len(machine.builds) == 1
    built.path.write_bytes(data[:-20])
    assert not build_engine(exported.path, tmp_path / "engines", profile=PROFILE).reused, "a damaged one is replaced"


def test_the_key_covers_weights_version_gpu_precision_profile_and_flags(machine, exported, exported_mask, tmp_path):
    keys = {build_engine(exported.path, tmp_path, profile=PROFILE).record.key}
    other = PROFILE.model_copy(update={"max": (8, 120, 120)})
    keys.add(build_engine(exported_mask.path, tmp_path, profile=PROFILE).record.key)
    keys.add(build_engine(exported.path, tmp_path, profile=other).record.key)
    keys.add(build_engine(exported.path, tmp_path, profile=PROFILE, version_compatible=True).record.key)
    keys.add(build_engine(exported.path, tmp_path, profile=PROFILE, hardware="SAME_COMPUTE_CAPABILITY").record.key)
    machine.cuda.compute_capability = "8.6"
    keys.add(build_engine(exported.path, tmp_path, profile=PROFILE).record.key)
    (elsewhere,) = [v for v in VERSIONS if v != __import__("tensorrt").__version__]
    machine.install(elsewhere)
    keys.add(build_engine(exported.path, tmp_path, profile=PROFILE).record.key)
    assert len(keys) == 7
    assert len(list(tmp_path.glob("*.plan"))) == 7


def test_kernel_times_are_kept_per_version_and_gpu(machine, exported, exported_mask, tmp_path, caplog):
    build_engine(exported.path, tmp_path, profile=PROFILE)
    (cache,) = tensorrt_build.cache_folder().iterdir()
    assert cache.name == f"trt{__import__('tensorrt').__version__}-sm9.0.timing"
    build_engine(exported_mask.path, tmp_path, profile=PROFILE)
    assert machine.builds[1]["timing_cache"] == cache.read_bytes() != b""
    cache.write_bytes(b"of another TensorRT")
    build_engine(exported.path, tmp_path / "new", profile=PROFILE)
    assert "starts anew" in caplog.text
    assert cache.read_bytes() != b"of another TensorRT"


def test_class_ids_reach_uint8_by_way_of_float(exported: Exported):
    model = onnx.load(exported.path)
    changed = for_tensorrt(model, name="model.onnx")
    assert len(changed.graph.node) == len(model.graph.node) + 1
    onnx.checker.check_model(changed, full_check=True)
    images = np.stack([make_image(45, 70, seed=3)])
    session = __import__("onnxruntime").InferenceSession(changed.SerializeToString())
    (mask,) = session.run(["mask"], {"image": images})
    np.testing.assert_array_equal(mask, OnnxRuntime(exported.path).run(images)["mask"])


def test_unsigned_int8_is_refused_with_every_place():
    helper, types = onnx.helper, onnx.TensorProto
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
    for zero in (np.uint8(128), np.int8(3)):
        point = onnx.numpy_helper.from_array(zero, "zero")
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise_stem"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantise_stem"),
        ]
        values = [helper.make_tensor_value_info(n, types.FLOAT, [1]) for n in "xy"]
        model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [scale, point]))
        with pytest.raises(InputError, match=r"(?s)INT8 that TensorRT does not run: 2 faults.*quantise_stem") as error:
            for_tensorrt(model, name="model_int8.onnx")
        assert f"zero point {zero.dtype} {zero}" in str(error.value)
        assert "float16 file" in str(error.value)


@pytest.mark.usefixtures("machine")
def test_operators_that_the_parser_refuses_are_all_named(exported: Exported, tmp_path):
    model = onnx.load(exported.path)
    for index, node in enumerate(n for n in model.graph.node if n.op_type == "Relu"):
        node.domain, node.op_type, node.name = "own.domain", f"Strange{index}", f"strange_{index}"
    model.opset_import.append(onnx.helper.make_opsetid("own.domain", 1))
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(ArtifactError, match=r"(?s)cannot read the graph: 3 faults.*Strange0 .*strange_2") as error:
        build_engine(tmp_path / "strange.onnx", tmp_path / "engines", profile=PROFILE)
    assert error.value.exit_code == 5
    assert not (tmp_path / "engines").exists()


@pytest.mark.usefixtures("machine")
def test_a_build_that_fails_says_why_and_leaves_nothing(exported: Exported, tmp_path):
    model = onnx.load(exported.path)
    model.doc_string = "cilseg-stand-in-too-big"
    onnx.save(model, tmp_path / "big.onnx")
    with pytest.raises(ArtifactError, match=r"could not build .*profile small \(1x16x16.*out of memory.*--trt-profile"):
        build_engine(tmp_path / "big.onnx", tmp_path / "engines", profile=PROFILE)
    assert not (tmp_path / "engines").exists()


def test_without_tensorrt_cuda_or_gpu_the_refusal_names_the_way_out(monkeypatch, exported: Exported, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"TensorRT is not installed .*GPU.*cilseg\[tensorrt\]"):
        build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    machine = Machine(monkeypatch, tmp_path, VERSIONS[0], devices=0)
    with pytest.raises(CilsegError, match=r"no usable NVIDIA GPU here: .*no CUDA-capable device.*nvidia-smi"):
        build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    del machine.cuda.cudaGraphLaunch
    with pytest.raises(MissingDependencyError, match="libcudart lacks cudaGraphLaunch"):
        build_engine(exported.path, tmp_path / "engines", profile=PROFILE)
    monkeypatch.undo()
    monkeypatch.setattr(cudart, "_candidates", lambda: ["libcudart.so.nowhere"])
    with pytest.raises(MissingDependencyError, match=r"libcudart.so.13 or .12\) is not installed.*NVIDIA"):
        cudart.open_device()
    assert not (tmp_path / "engines").exists()


@pytest.mark.usefixtures("machine")
def test_another_major_is_refused(exported: Exported, tmp_path):
    __import__("tensorrt").__dict__["__version__"] = "8.6.1"
    with pytest.raises(ArtifactError, match=r"TensorRT 8.6.1 is installed; engines are built with 10.x and 11.x"):
        build_engine(exported.path, tmp_path, profile=PROFILE)


def test_profiles_are_read_from_text_and_follow_the_network_size():
    assert parse_profile("wide=1x128x256,1x512x1024,8x512x2048") == Profile(
        name="wide", min=(1, 128, 256), opt=(1, 512, 1024), max=(8, 512, 2048)
    )
    for text in ("wide", "wide=1x2x3", "wide=1x128,1x512,8x512", "w=2x64x64,1x64x64,4x64x64", "=1x8x8,1x8x8,1x8x8"):
        with pytest.raises(InputError, match=r"is no profile: .*NAME=MIN,OPT,MAX"):
            parse_profile(text)
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=240)
    assert default_profile(preprocessing).opt == (1, 240, 320)
    assert default_profile(preprocessing).accepts((3, 145, 193))
