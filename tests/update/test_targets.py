"""What is made from an exported version: engines (through the TensorRT stand-in), Triton models, latency tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from update_story import BaseStory

from cilseg.bench import latency
from cilseg.bench.latency import TORCH, LatencyRequest, measure_version
from cilseg.bench.latency_report import write_report
from cilseg.errors import CilsegError, InputError, MissingDependencyError, NotFoundError, ParityError
from cilseg.registry import Registry
from cilseg.update.backend_parity import check_backends
from cilseg.update.export import export_version
from cilseg.update.tensorrt import export_engine, verify_engine
from cilseg.update.triton import export_triton
from cilseg_serve import Segmenter
from cilseg_serve.backends import cudart
from tests.tensorrt_stand_in.fake_cuda import FakeCuda
from tests.tensorrt_stand_in.fake_tensorrt import VERSIONS, fake_tensorrt

REF = "shapes:1"


@pytest.fixture(scope="module")
def shared(base_story: BaseStory, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The base model, exported once for the tests below."""
    registry = base_story.copy(tmp_path_factory.mktemp("targets") / "registry")
    export_version(registry, REF)
    return registry


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    cuda = FakeCuda()
    monkeypatch.setattr(cudart, "_load", lambda: cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(VERSIONS[-1], cuda))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return cuda


def test_an_export_is_compared_on_every_runtime_that_is_here(shared: Registry) -> None:
    record = shared.attachment(shared.resolve(REF), "model.onnx").metadata
    assert record["parity"]["passed"]
    verdict = record["backends"]["openvino"]
    assert verdict["passed"]
    assert verdict["runtime"]["precision"] == "float32 (INFERENCE_PRECISION_HINT=f32)"
    assert verdict["comparisons"] == record["parity"]["comparisons"]
    assert Segmenter(REF, registry=shared).backend.backend == "openvino"


def test_a_runtime_that_answers_differently_is_recorded_and_not_chosen(
    shared: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cilseg.models.inference import InferenceGraph
    from cilseg.update.bundle import model_of
    from cilseg_serve.backends.openvino_runtime import OpenVinoBackend

    version = shared.resolve(REF)
    graph = InferenceGraph(model_of(version), version.manifest.preprocessing).eval()
    run = OpenVinoBackend.run
    monkeypatch.setattr(
        OpenVinoBackend, "run", lambda self, images, outputs=None: {"mask": 2 - run(self, images, outputs)["mask"]}
    )
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = shared.attachment(version, "model.onnx").path
    verdicts = check_backends(graph, path, [image], ids=["noise"])
    assert verdicts["openvino"]["passed"] is False
    assert "answers differently from the trained model on openvino" in caplog.text


def test_an_engine_is_built_compared_attached_and_found_again(shared: Registry, gpu: FakeCuda) -> None:
    first = export_engine(shared, REF)
    assert first.attachment is not None
    assert not first.reused
    assert first.attachment.kind == "tensorrt"
    assert first.parity["passed"]
    assert first.parity["runtime"]["runtime"] == "tensorrt"
    record = first.attachment.metadata["engine"]
    assert record["onnx_sha256"] == shared.attachment(shared.resolve(REF), "model.onnx").sha256
    assert export_engine(shared, REF).reused
    segmenter = Segmenter(REF, registry=shared, backend="tensorrt")
    reference = Segmenter(REF, registry=shared, backend="onnxruntime")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(segmenter.segment(image).mask, reference.segment(image).mask)
    assert segmenter.class_set == reference.class_set
    gpu.compute_capability = "8.6"
    other = export_engine(shared, REF)
    assert other.attachment is not None
    assert not other.reused


def test_an_engine_that_answers_differently_is_not_attached(
    base_story: BaseStory, shared: Registry, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cilseg_serve.backends.tensorrt_runtime import TensorRtBackend

    del base_story, gpu
    run = TensorRtBackend.run
    monkeypatch.setattr(
        TensorRtBackend, "run", lambda self, images, outputs=None: {"mask": 2 - run(self, images, outputs)["mask"]}
    )
    before = set(shared.attachments(shared.resolve(REF)))
    with pytest.raises(ParityError, match=r"does not give the network's answers") as error:
        export_engine(shared, REF, profile="odd=1x16x16,1x64x64,4x128x128")
    assert error.value.exit_code == 4
    assert set(shared.attachments(shared.resolve(REF))) == before
    assert (Path("parity-shapes-1-tensorrt") / "parity.json").is_file()


def test_the_self_check_passes_line_by_line_or_says_what_failed(shared: Registry, gpu: FakeCuda) -> None:
    result = verify_engine(shared, REF, profile="check=1x16x16,1x64x64,4x128x128")
    assert [(s.what, s.detail) for s in result.steps if not s.passed] == []
    assert result.passed
    assert len(result.steps) == 10
    gpu.can_capture = False
    failed = [
        s.what for s in verify_engine(shared, REF, profile="check=1x16x16,1x64x64,4x128x128").steps if not s.passed
    ]
    assert failed == ["calls are CUDA graphs"]
    gpu.devices = 0
    steps = verify_engine(shared, REF).steps
    assert [s.passed for s in steps] == [True, *[False] * 9]
    assert "no usable NVIDIA GPU" in steps[1].detail
    assert steps[2].detail == "not run, it needs: GPU answers"
    assert [s.ran for s in steps] == [True, True, *[False] * 8]


def test_without_tensorrt_an_engine_is_refused_before_anything_is_exported(
    base_story: BaseStory, tmp_path: Path
) -> None:
    registry = base_story.copy(tmp_path / "registry")
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed here"):
        export_engine(registry, REF)
    assert registry.attachments(registry.resolve(REF)) == {}
    with pytest.raises(NotFoundError):
        export_triton(registry, REF, tmp_path / "models")


class TestLatency:
    def test_every_runtime_is_a_row_and_the_accuracies_agree(self, shared: Registry, tmp_path: Path) -> None:
        request = LatencyRequest(sizes=((48, 64), (33, 33)), batches=(1, 2), repeats=4, images=3, memory=False)
        version, rows = measure_version(shared, REF, request)
        keys = {(r.backend, r.height, r.width, r.batch) for r in rows}
        names = (TORCH, "onnxruntime", "openvino")
        assert {(n, *s, b) for n in names for s in ((48, 64), (33, 33)) for b in (1, 2)} <= keys
        for row in rows:
            assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
            assert row.images_per_s == pytest.approx(1000 * row.batch / row.median_ms, rel=0.01)
            assert row.counts
            assert (row.over_torch == 1.0) == (row.backend == TORCH)
        onnx = [r.miou for r in rows if r.file_name == "model.onnx"]
        assert max(onnx) - min(onnx) < 0.2
        payload = write_report(version, rows, request, tmp_path / "out")
        assert json.loads((tmp_path / "out" / "latency.json").read_text()) == json.loads(json.dumps(payload))
        assert payload["best"]["backend"] in ("onnxruntime", "openvino")
        picture = (tmp_path / "out" / "latency.svg").read_text()
        ElementTree.fromstring(picture)
        assert "http" not in picture.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert all(f"{n} float32" in picture for n in names)

    def test_rows_without_a_passed_check_do_not_count(
        self, shared: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = shared.resolve(REF)
        data = shared.attachment(version, "model.onnx").path.read_bytes()
        shared.attach(version, "model_other.onnx", data, kind="onnx", metadata={"parity": {"passed": False}})
        shared.attach(version, "model.compat.onnx", data, kind="onnx compat")  # for others: no row
        monkeypatch.chdir(tmp_path)
        (tmp_path / "json.py").write_text("raise SystemExit('files of the working directory are no modules')")
        request = LatencyRequest(sizes=((32, 32),), backends=("onnxruntime",), repeats=2, images=2, memory=True)
        _, rows = measure_version(shared, REF, request)
        assert {r.file_name: r.counts for r in rows} == {"model.onnx": True, "model_other.onnx": False}
        assert all(r.peak_mib is not None and r.peak_mib > 20 for r in rows)
        payload = write_report(version, rows, request, tmp_path)
        assert payload["best"]["file_name"] == "model.onnx"
        assert "does not count" in (tmp_path / "latency.svg").read_text()

    def test_bad_requests_are_refused(self, shared: Registry, base_story: BaseStory, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no backend 'openvin'. Did you mean 'openvino'"):
            measure_version(shared, REF, LatencyRequest(backends=("openvin",)))
        with pytest.raises(InputError, match="are 1 or more"):
            measure_version(shared, REF, LatencyRequest(repeats=0))
        with pytest.raises(NotFoundError, match="no exported file of shapes:1 starts on any runtime here"):
            measure_version(base_story.copy(tmp_path / "bare"), REF, LatencyRequest())

    def test_a_runtime_that_fails_at_a_size_is_left_out_of_it(self) -> None:
        def refuse(_: latency.Array) -> latency.Array:
            raise CilsegError("outside the profile")

        def candidate(name: str, answer: object) -> latency.Candidate:
            return latency.Candidate(name, "float32", "f", answer, True, "", None)  # type: ignore[arg-type]

        good = candidate(TORCH, lambda batch: batch[..., 0])
        image = np.zeros((4, 5, 3), np.uint8)
        measured = latency.time_candidates([good, candidate("tensorrt", refuse)], [image], repeats=3)
        assert [c.backend for c, _ in measured] == [TORCH]
