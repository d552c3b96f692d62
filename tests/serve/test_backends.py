"""One contract for every runtime, and what each refuses. TensorRT is a stand-in (tests/tensorrt_stand_in)."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from cilseg.errors import ArtifactError, CilsegError, InputError, MissingDependencyError, NotFoundError, ParityError
from cilseg_serve import Segmenter
from cilseg_serve.backends import cudart, openvino_runtime
from cilseg_serve.backends.base import BACKENDS, Backend
from cilseg_serve.backends.engine_file import EngineRecord, Profile, find_engine, sidecar_path, write_engine
from cilseg_serve.backends.onnx_metadata import metadata_props
from cilseg_serve.backends.opening import open_session
from tests.serve.conftest import BundleMaker
from tests.serve.tiny_model import CLASSES, expected_logits, expected_mask, make_onnx
from tests.tensorrt_stand_in.fake_cuda import FakeCuda
from tests.tensorrt_stand_in.fake_tensorrt import VERSIONS, fake_tensorrt

Image8 = npt.NDArray[np.uint8]
MANIFEST = json.dumps(
    {"classes": CLASSES.to_json(), "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]}, "precision": "float32"}
)
MODEL = make_onnx(confidence=True, metadata={"cilseg.manifest": MANIFEST, "names": "{0: 'häst'}"})
PROFILE = Profile(name="small", min=(1, 4, 4), opt=(1, 24, 30), max=(4, 64, 64))


@pytest.fixture(params=VERSIONS)
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT and a GPU of compute capability 9.0, both stand-ins."""
    return install_tensorrt(monkeypatch, request.param)


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, version: str, **gpu: Any) -> ModuleType:
    cuda = FakeCuda(**gpu)
    monkeypatch.setattr(cudart, "_load", lambda: cuda)
    module = fake_tensorrt(version, cuda)
    module.__dict__["_cuda"] = cuda
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def build(trt: ModuleType, folder: Path, *, model: bytes = MODEL, **fields: Any) -> Path:
    """Build an engine of the hand-made model the way the exporter does (which is tested on its own)."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    proto = onnx.load_from_string(model)
    (cast,) = [n for n in proto.graph.node if n.output[0] == "mask"]
    proto.graph.node.insert(
        len(proto.graph.node) - 1, onnx.helper.make_node("Cast", [cast.input[0]], ["float"], to=onnx.TensorProto.FLOAT)
    )
    next(n for n in proto.graph.node if n.output[0] == "mask").input[0] = "float"
    assert trt.OnnxParser(network, logger).parse(proto.SerializeToString())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((*s, 3) for s in (PROFILE.min, PROFILE.opt, PROFILE.max)))
    config.add_optimization_profile(profile)
    record: dict[str, Any] = {
        "onnx_sha256": "sha256:00",
        "tensorrt": trt.__version__,
        "compute_capability": "9.0",
        "gpu": "a stand-in",
        "precision": "float32",
        "profile": PROFILE,
        "metadata": metadata_props(model),
        **fields,
    }
    if record.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return write_engine(folder, bytes(builder.build_serialized_network(network, config)), EngineRecord(**record))


@pytest.fixture(params=["onnxruntime", "openvino", *(f"tensorrt {v}" for v in VERSIONS)])
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Backend]:
    """The hand-made model in each runtime."""
    name, _, version = request.param.partition(" ")
    if version:
        yield open_session(build(install_tensorrt(monkeypatch, version), tmp_path), backend=name)
    else:
        yield open_session(MODEL, backend=name, name="tiny", threads=1)


def images(*shape: int) -> Image8:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


class TestContract:
    """What every runtime does."""

    def test_answers_at_any_size_and_batch(self, session: Backend) -> None:
        for shape in [(1, 24, 30), (3, 17, 23), (1, 4, 5), (4, 24, 30), (1, 24, 30)]:
            batch = images(*shape)
            answers = session.run(batch)
            assert set(answers) == {"mask", "confidence"} == set(session.outputs)
            assert (answers["mask"].dtype, answers["confidence"].dtype) == (np.uint8, np.float32)
            logits = expected_logits(batch)
            np.testing.assert_array_equal(answers["mask"], expected_mask(batch))
            exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
            np.testing.assert_allclose(answers["confidence"], 1 / exponents.sum(axis=-1), rtol=1e-4)

    def test_computes_only_what_is_asked_for(self, session: Backend) -> None:
        assert set(session.run(images(1, 8, 9), ["mask"])) == {"mask"}
        with pytest.raises(InputError, match=r"has no output logits, it has .*mask.*cilseg export REF"):
            session.run(images(1, 8, 9), ["mask", "logits"])

    def test_answers_stay_what_they_were_after_the_next_call(self, session: Backend) -> None:
        batch = images(1, 24, 30)
        first = session.run(batch)["mask"]
        session.run(255 - batch)
        np.testing.assert_array_equal(first, expected_mask(batch))

    def test_views_of_other_arrays_are_taken(self, session: Backend) -> None:
        batch = images(2, 48, 60)[:, ::2, ::-2]
        np.testing.assert_array_equal(session.run(batch)["mask"], expected_mask(batch))

    def test_threads_may_share_it(self, session: Backend) -> None:
        batches = [images(1, 16 + i % 5, 20) for i in range(40)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda b: session.run(b)["mask"], batches))
        for batch, mask in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(mask, expected_mask(batch))

    def test_says_what_runs(self, session: Backend) -> None:
        assert isinstance(session, Backend)
        info = session.describe()
        assert info.backend in BACKENDS
        assert info.version[0].isdigit()
        assert info.precision == "float32"
        assert info.arithmetic
        assert info.reason == "named by the caller"
        json.dumps(info.to_json())

    def test_hands_on_the_metadata_of_the_file(self, session: Backend) -> None:
        assert session.metadata == {"cilseg.manifest": MANIFEST, "names": "{0: 'häst'}"}

    @pytest.mark.parametrize(
        "bad", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8)]
    )
    def test_refuses_what_is_no_batch(self, session: Backend, bad: npt.NDArray[Any]) -> None:
        with pytest.raises(InputError, match=r"A batch is \(N, H, W, 3\) uint8"):
            session.run(bad)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
class TestOnnxModels:
    def test_another_graph_is_refused(self, backend: str) -> None:
        with pytest.raises(ArtifactError, match=r"tiny: not a cilseg graph.*'images'"):
            open_session(make_onnx(input_name="images"), backend=backend, name="tiny")

    def test_a_damaged_file_is_refused(self, backend: str, tmp_path: Path) -> None:
        (tmp_path / "cut.onnx").write_bytes(MODEL[:200])
        with pytest.raises(ArtifactError, match=r"cut.onnx: .* cannot load the model"):
            open_session(tmp_path / "cut.onnx", backend=backend)

    def test_a_missing_package_names_its_extra(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, backend, None)
        extra = {"onnxruntime": "cpu", "openvino": "openvino"}[backend]
        with pytest.raises(MissingDependencyError, match=rf"pip install 'cilseg\[{extra}\]'"):
            open_session(MODEL, backend=backend)

    def test_threads_are_recorded(self, backend: str) -> None:
        assert open_session(MODEL, backend=backend, threads=1).describe().threads == 1
        with pytest.raises(InputError, match="threads is at least 1, got 0"):
            open_session(MODEL, backend=backend, threads=0)

    def test_an_engine_is_no_onnx_model(self, backend: str, tmp_path: Path) -> None:
        (tmp_path / "m.plan").write_bytes(b"engine")
        with pytest.raises(InputError, match=f"is a TensorRT engine; {backend} runs ONNX models"):
            open_session(tmp_path / "m.plan", backend=backend)


def test_openvino_computes_in_float32_and_says_so() -> None:
    info = open_session(MODEL, backend="openvino").describe()
    assert (info.arithmetic, info.device) == ("INFERENCE_PRECISION_HINT=f32", "cpu")


class TestOpenVinoShapes:
    """A shape that comes often gets a model of its own, which answers as the other one did."""

    @pytest.fixture
    def own(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
        monkeypatch.setattr(openvino_runtime, "FIXED_AFTER", 3)
        caplog.set_level(logging.DEBUG, logger=openvino_runtime.__name__)
        return lambda: [r.getMessage().split("shape ")[1] for r in caplog.records if "of its own" in r.getMessage()]

    def test_answers_stay_the_same(self, own: Callable[[], list[str]]) -> None:
        rng = np.random.default_rng(0)
        session = open_session(MODEL, backend="openvino")
        images = {n: rng.integers(0, 256, (n, 21, 30, 3), dtype=np.uint8) for n in (1, 2)}
        first = {n: session.run(image) for n, image in images.items()}
        for call in range(1, 5):
            for n, image in images.items():
                answer = session.run(image)
                np.testing.assert_array_equal(answer["mask"], expected_mask(image))
                np.testing.assert_array_equal(answer["confidence"], first[n]["confidence"])
            assert len(own()) == (2 if call >= 2 else 0)
        assert own() == ["(1, 21, 30, 3).", "(2, 21, 30, 3)."]

    def test_the_least_used_gives_way(self, own: Callable[[], list[str]]) -> None:
        rng = np.random.default_rng(0)
        session = open_session(MODEL, backend="openvino")
        for side in (8, 9, 10, 9, 8):  # 8 gave way to 10, and comes again
            for _ in range(3):
                image = rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
                np.testing.assert_array_equal(session.run(image)["mask"], expected_mask(image))
        assert own() == [f"(1, {side}, {side}, 3)." for side in (8, 9, 10, 8)]

    def test_threads_get_answers_while_one_compiles(self, own: Callable[[], list[str]]) -> None:
        session = open_session(MODEL, backend="openvino")
        image = np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3), dtype=np.uint8)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: session.run(image)["mask"], range(64)))
        assert all((answer == expected_mask(image)).all() for answer in answers)
        assert own() == ["(1, 33, 47, 3)."]

    def test_a_failure_leaves_the_model_for_any_shape(
        self, own: Callable[[], list[str]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import openvino

        session = open_session(MODEL, backend="openvino", name="tiny")
        image = np.zeros((1, 12, 12, 3), np.uint8)

        def full(*_: Any) -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr(openvino.Core, "compile_model", full)
        for _ in range(8):
            np.testing.assert_array_equal(session.run(image)["mask"], expected_mask(image))
        assert own() == []
        warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warned == ["tiny: OpenVINO has no model for the shape (1, 12, 12, 3) alone (no memory)."]


def test_unknown_backends_are_refused_with_a_guess() -> None:
    with pytest.raises(
        InputError, match=r"no backend 'openvno'. Did you mean 'openvino'\? Backends: auto, onnxruntime"
    ):
        open_session(MODEL, backend="openvno")
    with pytest.raises(InputError, match=r"no backend 'tensort'. Did you mean 'tensorrt'\?"):
        Segmenter("anything", backend="tensort")
    with pytest.raises(NotFoundError, match=r"no.onnx does not exist.*cilseg export"):
        open_session(Path("no.onnx"))


class TestCuda:
    def test_a_build_without_cuda_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(MissingDependencyError, match=r"built without CUDA .*CPUExecutionProvider.*cilseg\[gpu\]"):
            open_session(MODEL, backend="onnxruntime-cuda")

    def test_a_silent_fall_back_to_the_cpu_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """onnxruntime-gpu without a GPU lists CUDA, logs an error and runs on the CPU."""
        asked = pretend_cuda_build(monkeypatch)
        with pytest.raises(CilsegError, match=r"fell back silently: asked for CUDA, it runs tiny on CPUExecutionProv"):
            open_session(MODEL, backend="onnxruntime-cuda", name="tiny")
        assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]

    def test_auto_goes_on_without_it_and_says_why(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pretend_cuda_build(monkeypatch)
        with caplog.at_level(logging.INFO, logger="cilseg_serve"):
            info = open_session(MODEL, name="tiny").describe()
        assert info.backend == "openvino"
        assert "not onnxruntime-cuda: onnxruntime fell back silently" in info.reason
        assert f"tiny runs on openvino: {info.reason}" in caplog.text


def pretend_cuda_build(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make onnxruntime look like its CUDA build on a machine without a GPU; return what sessions were asked for."""
    import onnxruntime

    real, asked = onnxruntime.InferenceSession, []

    def start(model: Any, options: Any, providers: list[Any]) -> Any:
        if providers[0] != "CPUExecutionProvider":
            asked.append(providers)
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    return asked


class TestAuto:
    def test_takes_openvino_where_the_model_was_verified_on_it(self) -> None:
        info = open_session(MODEL, verified={"openvino", "onnxruntime"}).describe()
        assert info.backend == "openvino"
        assert info.reason.startswith("the fastest of those here; not onnxruntime-cuda")

    def test_takes_onnxruntime_where_openvino_is_not_verified_or_not_installed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info = open_session(MODEL, verified={"onnxruntime"}).describe()
        assert info.backend == "onnxruntime"
        assert "not openvino: no passed comparison with the trained model on it" in info.reason
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        info = open_session(MODEL).describe()
        assert info.backend == "onnxruntime"
        assert "not openvino: not installed (pip install 'cilseg[openvino]')" in info.reason

    def test_does_not_even_import_a_runtime_that_it_does_not_take(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(MODEL)
        program = (
            "import sys; from pathlib import Path; from cilseg_serve.backends.opening import open_session\n"
            "session = open_session(Path(sys.argv[1]))\n"
            "print(session.describe().backend, 'onnxruntime' in sys.modules)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "model.onnx")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.split() == ["openvino", "False"]

    def test_a_named_backend_without_a_verdict_is_refused_or_allowed_with_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(ParityError, match=r"tiny was not compared .* on openvino \(it was on onnxruntime\)"):
            open_session(MODEL, backend="openvino", name="tiny", verified={"onnxruntime"})
        open_session(MODEL, backend="openvino", verified={"onnxruntime"}, allow_unverified=True)
        assert "UNVERIFIED BACKEND" in caplog.text

    def test_the_segmenter_follows_the_verdicts_in_the_record(
        self, make_bundle: BundleMaker, color_image: Image8
    ) -> None:
        parity = {"passed": True, "runtime": {"runtime": "onnxruntime"}}
        only = make_bundle(name="only", metadata={"parity": parity})
        both = make_bundle(name="both", metadata={"parity": parity, "backends": {"openvino": {"passed": True}}})
        wrong = make_bundle(name="wrong", metadata={"parity": parity, "backends": {"openvino": {"passed": False}}})
        assert [Segmenter(b).backend.backend for b in (only, both, wrong)] == ["onnxruntime", "openvino", "onnxruntime"]
        with pytest.raises(ParityError, match="not compared"):
            Segmenter(wrong, backend="openvino")
        chosen = Segmenter(both, backend="onnxruntime", threads=1)
        for segmenter in (chosen, Segmenter(both)):
            np.testing.assert_array_equal(segmenter.segment(color_image).mask, expected_mask(color_image))


class TestEngines:
    def test_sizes_outside_the_profile_are_refused(self, tensorrt: ModuleType, tmp_path: Path) -> None:
        session = open_session(build(tensorrt, tmp_path))
        assert session.describe().reason == "the file is a TensorRT engine"
        for shape in [(5, 24, 30), (1, 65, 30), (1, 24, 3)]:
            with pytest.raises(InputError, match=r"outside the engine's profile small \(1x4x4, 1x24x30, 4x64x64\)"):
                session.run(images(*shape))

    def test_buffers_of_few_sizes_are_kept_and_all_are_freed(self, tensorrt: ModuleType, tmp_path: Path) -> None:
        session: Any = open_session(build(tensorrt, tmp_path))
        for size in range(10, 20):
            session.run(images(1, size, size))
        cuda = tensorrt.__dict__["_cuda"]
        assert len(cuda.memory) == 4 * 2 * 3
        assert len(cuda.graphs) == 4
        session.run(images(1, 19, 19))
        assert cuda.launches == 11
        session.close()
        assert (cuda.memory, cuda.graphs, cuda.streams) == ({}, {}, {})

    def test_it_runs_without_graphs_where_they_cannot_be_captured(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        session = open_session(build(install_tensorrt(monkeypatch, VERSIONS[0], can_capture=False), tmp_path))
        np.testing.assert_array_equal(session.run(images(1, 9, 9))["mask"], expected_mask(images(1, 9, 9)))
        assert "no CUDA graphs (CUDA: cudaStreamBeginCapture failed with 900" in session.describe().arithmetic

    def test_an_engine_of_another_gpu_or_version_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ten, eleven = VERSIONS
        engine = build(install_tensorrt(monkeypatch, ten), tmp_path)
        install_tensorrt(monkeypatch, ten, compute_capability="8.6")
        with pytest.raises(
            ArtifactError, match=r"built for compute capability 9.0 .*, this GPU has 8.6.*--trt"
        ) as error:
            open_session(engine)
        assert error.value.exit_code == 5
        install_tensorrt(monkeypatch, eleven)
        with pytest.raises(ArtifactError, match=rf"built by TensorRT {ten}, this is {eleven}"):
            open_session(engine)

    def test_compatible_engines_run_where_tensorrt_promises_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ten, eleven = VERSIONS
        trt = install_tensorrt(monkeypatch, ten)
        engine = build(trt, tmp_path, version_compatible=True, hardware="AMPERE_PLUS", tensorrt="10.3.0.26")
        install_tensorrt(monkeypatch, ten, compute_capability="8.6")
        np.testing.assert_array_equal(open_session(engine).run(images(1, 9, 9))["mask"], expected_mask(images(1, 9, 9)))
        install_tensorrt(monkeypatch, ten, compute_capability="7.5")
        with pytest.raises(ArtifactError, match=r"GPUs of compute capability 8.0 and later, this one has 7.5"):
            open_session(engine)
        install_tensorrt(monkeypatch, eleven)
        with pytest.raises(ArtifactError, match=r"TensorRT 10.3.0.26 for that and later 10.x releases, this is 11"):
            open_session(engine)

    def test_a_sidecar_that_is_missing_damaged_or_of_another_file_is_refused(
        self, tensorrt: ModuleType, tmp_path: Path
    ) -> None:
        engine = build(tensorrt, tmp_path)
        text = sidecar_path(engine).read_text()
        engine.write_bytes(engine.read_bytes() + b" ")
        with pytest.raises(
            ArtifactError, match=r"and its sidecar disagree: the file has sha256:.*cilseg export REF --trt"
        ):
            open_session(engine)
        sidecar_path(engine).write_text(text.replace('"precision": "float32"', '"precision": "int8"'))
        with pytest.raises(ArtifactError, match=r"(?s)cannot be read .*its key .* does not belong to what it says"):
            open_session(engine)
        sidecar_path(engine).write_text("{")
        with pytest.raises(ArtifactError, match=r"\.plan\.json cannot be read"):
            open_session(engine)
        sidecar_path(engine).unlink()
        with pytest.raises(ArtifactError, match=r"its sidecar .*\.plan\.json is missing"):
            open_session(engine)

    def test_bytes_that_tensorrt_does_not_load_are_refused(self, tensorrt: ModuleType, tmp_path: Path) -> None:
        engine = build(tensorrt, tmp_path)
        record = EngineRecord.model_validate(json.loads(sidecar_path(engine).read_text())["engine"])
        write_engine(tmp_path, b"no engine", record)
        with pytest.raises(ArtifactError, match=r"TensorRT .* cannot load the engine \(9 bytes\)"):
            open_session(engine)

    def test_tensorrt_runs_engines_alone(self, tensorrt: ModuleType) -> None:
        del tensorrt
        with pytest.raises(InputError, match=r"no TensorRT engine \(a .plan file\). .*cilseg export REF --trt"):
            open_session(MODEL, backend="tensorrt")

    def test_the_engine_for_this_machine_is_found_or_all_are_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFoundError, match=r"tiny has no TensorRT engine. .*cilseg export REF --trt"):
            find_engine(tmp_path, "tiny")
        trt = install_tensorrt(monkeypatch, VERSIONS[0])
        fits = build(trt, tmp_path)
        build(trt, tmp_path, compute_capability="8.6")
        build(trt, tmp_path, tensorrt="10.0.1")
        assert find_engine(tmp_path, "tiny") == fits
        install_tensorrt(monkeypatch, VERSIONS[0], compute_capability="12.0")
        with pytest.raises(ArtifactError, match=r"(?s)none of its 3 engines runs on .*sm86.*has 12.0.*sm90"):
            find_engine(tmp_path, "tiny")

    def test_missing_packages_and_gpus_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        engine = build(install_tensorrt(monkeypatch, VERSIONS[0]), tmp_path)
        install_tensorrt(monkeypatch, VERSIONS[0], devices=0)
        with pytest.raises(CilsegError, match="no usable NVIDIA GPU here"):
            open_session(engine)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingDependencyError, match=r"TensorRT is not installed here .*cilseg\[tensorrt\]"):
            open_session(engine)


def test_metadata_is_read_without_the_onnx_package() -> None:
    expected = {p.key: p.value for p in onnx.load_from_string(MODEL).metadata_props}
    assert metadata_props(MODEL) == expected
    assert metadata_props(make_onnx()) == {}
    for broken in (MODEL[:-3], b"\x0b\x00", b"\x08" + b"\xff" * 12):
        with pytest.raises(ArtifactError, match="are no ONNX model"):
            metadata_props(broken)


@pytest.mark.parametrize("module", ["opening", "base", "onnx_runtime", "openvino_runtime", "tensorrt_runtime"])
def test_nothing_is_imported_before_it_is_asked_for(module: str) -> None:
    code = f"import sys, cilseg_serve.backends.{module}; print([m for m in sys.modules if m in {HEAVY!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ("torch", "onnxruntime", "openvino", "tensorrt", "onnx", "sqlalchemy")
