"""The Python variant of a Triton repository, served by a real Triton and asked by the real client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from benchmarks.serve_model import NAME as RESNET18
from benchmarks.serve_model import make_version
from cilseg.registry import Registry
from cilseg.update.triton import export_triton
from cilseg_export.triton_config import TritonModel
from cilseg_export.triton_repository import write_triton_model
from cilseg_serve.backends.opening import open_session
from tests.registry_of_tiny import register_tiny
from tests.serve.server.server_world import running
from tests.serve.tiny_model import CLASSES
from tests.systems.triton_server import TritonServer

pytestmark = pytest.mark.systems
NAME = "tiny"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 and 2 of one model, both exported; the second swaps red and green."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry.open(folder / "registry")
    for swap in (False, True):
        register_tiny(registry, folder / f"bundle{swap}", name=NAME, swap=swap)
    return registry


@pytest.fixture(scope="module")
def repository(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    for number in (1, 2):
        export_triton(registry, f"{NAME}:{number}", folder, backend="python", max_batch=4, threads=1)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    running = TritonServer(repository, tmp_path_factory.mktemp("log") / "triton.log", explicit=True)
    yield running
    running.stop()


@pytest.fixture
def client(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as opened:
        yield opened


def images(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def expected(registry: Registry, number: int, batch: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.generic]]:
    model = registry.attachment(registry.resolve(f"{NAME}:{number}"), "model.onnx").path
    return open_session(model, backend="onnxruntime").run(batch)


def ask(
    client: triton.InferenceServerClient,
    batch: npt.NDArray[np.uint8],
    *,
    model: str = NAME,
    outputs: tuple[str, ...] = ("mask", "confidence"),
) -> tuple[str, dict[str, npt.NDArray[np.generic]]]:
    """Return the version that answered, and its outputs."""
    tensor = triton.InferInput("image", batch.shape, "UINT8")
    tensor.set_data_from_numpy(batch)
    wanted = [triton.InferRequestedOutput(name) for name in outputs]
    answer = client.infer(model, [tensor], outputs=wanted)
    return answer.get_response()["model_version"], {n: answer.as_numpy(n) for n in outputs}


def test_answers_equal_onnxruntimes(client: triton.InferenceServerClient, registry: Registry) -> None:
    for shape in [(1, 24, 30), (3, 17, 23), (4, 24, 30)]:
        batch = images(*shape)
        version, answers = ask(client, batch)
        assert version == "2"
        for name, array in expected(registry, 2, batch).items():
            assert answers[name].dtype == array.dtype
            np.testing.assert_array_equal(answers[name], array)


def test_the_configuration_is_taken_as_written(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config(NAME)
    assert config["max_batch_size"] == 4
    assert config["version_policy"]["specific"]["versions"] == [2]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert [w["batch_size"] for w in config["model_warmup"]] == [1, 4]
    assert {o["name"]: o["dims"] for o in config["output"]} == {"mask": [-1, -1], "confidence": [-1, -1]}
    assert config["parameters"]["cilseg.ref"]["string_value"] == "tiny:2"
    metadata = client.get_model_metadata(NAME)
    assert metadata["versions"] == ["2"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]


def test_requests_that_come_together_are_batched_and_keep_apart(
    server: TritonServer, client: triton.InferenceServerClient, registry: Registry
) -> None:
    def one(seed: int) -> bool:
        batch = images(1, 20 + seed % 2, 16)
        with triton.InferenceServerClient(server.address) as own:
            answers = ask(own, batch)[1]
        return bool((answers["mask"] == expected(registry, 2, batch)["mask"]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(48)))
    (statistics,) = client.get_inference_statistics(NAME)["model_stats"]
    assert statistics["execution_count"] < statistics["inference_count"]


def test_what_does_not_fit_is_refused(client: triton.InferenceServerClient) -> None:
    for shape in [(5, 8, 9), (1, 8)]:
        with pytest.raises(InferenceServerException):
            ask(client, images(*shape))
    tensor = triton.InferInput("image", [1, 8, 9, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 8, 9, 3), np.float32))
    with pytest.raises(InferenceServerException, match="UINT8"):
        client.infer(NAME, [tensor])


def test_a_rollback_is_writing_the_older_version_again(
    client: triton.InferenceServerClient, registry: Registry, repository: Path
) -> None:
    batch = images(1, 12, 14)
    try:
        result = export_triton(registry, f"{NAME}:1", repository, backend="python", max_batch=4, threads=1)
        assert result.versions == (1, 2)
        client.load_model(NAME)
        version, answers = ask(client, batch)
        assert version == "1"
        np.testing.assert_array_equal(answers["mask"], expected(registry, 1, batch)["mask"])
        assert (answers["mask"] != expected(registry, 2, batch)["mask"]).any()
    finally:
        export_triton(registry, f"{NAME}:2", repository, backend="python", max_batch=4, threads=1)
        client.load_model(NAME)
    assert ask(client, batch)[0] == "2"


def test_cilseg_serve_answers_the_same_client_alike(client: triton.InferenceServerClient, registry: Registry) -> None:
    """At the short side that the model wants: other images ``cilseg serve`` resizes, and Triton's clients have to."""
    with (
        running(registry.root, f"{NAME}:2", "--backend", "onnxruntime") as ours,
        triton.InferenceServerClient(f"127.0.0.1:{ours.port}") as own,
    ):
        assert own.is_server_ready()
        for shape in [(1, 16, 30), (3, 23, 16), (4, 16, 16)]:
            version, theirs = ask(client, images(*shape))
            our_version, answers = ask(own, images(*shape))
            assert our_version == version
            for name, array in answers.items():
                assert theirs[name].dtype == array.dtype
                np.testing.assert_array_equal(theirs[name], array)


def test_cilseg_serve_and_triton_agree_on_an_exported_network(tmp_path: Path) -> None:
    """ResNet-18 with its DeepLabV3 head, exported as users export it; weights are random."""
    registry = Registry.open(tmp_path / "registry")
    ref = make_version(registry, int8=False).ref
    export_triton(registry, ref, tmp_path / "models", backend="python", max_batch=2, threads=1)
    server = TritonServer(tmp_path / "models", tmp_path / "triton.log")
    try:
        with (
            running(registry.root, ref, "--backend", "onnxruntime", "--threads", 1) as ours,
            triton.InferenceServerClient(f"127.0.0.1:{ours.port}") as own,
            triton.InferenceServerClient(server.address, network_timeout=120) as theirs,
        ):
            for shape in [(1, 96, 128), (2, 65, 97)]:
                blocks = images(shape[0], -(-shape[1] // 8), -(-shape[2] // 8)).repeat(8, 1).repeat(8, 2)
                batch = np.ascontiguousarray(blocks[:, : shape[1], : shape[2]])
                masks = [ask(c, batch, model=RESNET18, outputs=("mask",))[1]["mask"] for c in (own, theirs)]
                assert len(np.unique(masks[0])) > 1
                np.testing.assert_array_equal(masks[0], masks[1])
    finally:
        server.stop()


def test_configurations_of_other_backends_pass_tritons_own_check(registry: Registry, tmp_path: Path) -> None:
    """This server has the Python backend alone: it takes the configurations and stops at the missing libraries."""
    version = registry.resolve(f"{NAME}:1")
    onnx = registry.attachment(version, "model.onnx").path
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"never loaded")
    for backend in ("onnxruntime", "openvino", "tensorrt"):
        model = TritonModel(
            name=f"on_{backend}",
            served=1,
            backend=backend,
            outputs=("mask", "confidence"),
            n_classes=4,
            warm_up_hw=(24, 30),
            labels_file="",
            instances=2,
        )
        write_triton_model(
            tmp_path / "models",
            model,
            class_set=CLASSES,
            onnx=onnx,
            engines={"9.0": plan} if backend == "tensorrt" else {},
        )
    (tmp_path / "models" / "on_wrong" / "1").mkdir(parents=True)
    wrong = (tmp_path / "models" / "on_onnxruntime" / "config.pbtxt").read_text().replace("on_onnxruntime", "on_wrong")
    (tmp_path / "models" / "on_wrong" / "config.pbtxt").write_text(wrong.replace("FORMAT_NHWC", "FORMAT_NCWH"))
    with pytest.raises(AssertionError) as stopped:
        TritonServer(tmp_path / "models", tmp_path / "log")
    for backend in ("onnxruntime", "openvino", "tensorrt"):
        assert f"unable to find backend library for backend '{backend}'" in str(stopped.value)
    assert "FORMAT_NCWH" in str(stopped.value), "a wrong configuration is told apart from a missing library"
