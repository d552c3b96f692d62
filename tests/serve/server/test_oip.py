"""The Open Inference Protocol v2, with the real client of Triton against a real process, and by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from server_world import Process, decoded, encoded, expected_mask, make_model, picture, register, running
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from cilseg.registry import Registry

SWAPPED = (2, 1, 0)
INFER = "/v2/models/colours/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("oip")
    registry = Registry.open(folder / "registry")
    register(registry, folder, model=make_model(), seed=1)
    register(registry, folder, model=make_model(SWAPPED, confidence=True), seed=2)
    registry.promote("colours:1")
    with running(folder / "registry", "colours", "colours:2", "--token", "a-secret-token") as started:
        yield started


@pytest.fixture
def remote(process: Process) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{process.port}", concurrency=4)
    yield client
    client.close()


def token() -> dict[str, str]:
    """A new dictionary each time: the client adds to the one it is given."""
    return {"Authorization": "Bearer a-secret-token"}


def tensor(images: np.ndarray[Any, Any], *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("image", list(images.shape), "UINT8")
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def test_metadata_and_health(remote: triton.InferenceServerClient) -> None:
    assert remote.is_server_live()
    assert remote.is_server_ready()
    assert "binary_tensor_data" in remote.get_server_metadata()["extensions"]
    assert remote.is_model_ready("colours", headers=token())
    assert remote.is_model_ready("colours", "2", headers=token())
    assert not remote.is_model_ready("colours", "3", headers=token())
    assert not remote.is_model_ready("colors", headers=token())
    found = remote.get_model_metadata("colours", headers=token())
    assert found["versions"] == ["1", "2"]
    assert found["inputs"][0] == {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
    assert [o["name"] for o in found["outputs"]] == ["mask", "encoded_mask"]
    assert found["parameters"]["classes"] == ["background", "red", "green", "blue"]
    second = remote.get_model_metadata("colours", "2", headers=token())
    assert [o["name"] for o in second["outputs"]] == ["mask", "confidence", "encoded_mask"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_batch_of_tensors(remote: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    images = np.stack([picture(seed=seed) for seed in range(3)])
    answer = remote.infer(
        "colours",
        [tensor(images, binary=binary_in)],
        outputs=[triton.InferRequestedOutput("mask", binary_data=binary_out)],
        request_id="r-7",
        headers=token(),
    )
    assert np.array_equal(answer.as_numpy("mask"), np.stack([expected_mask(i) for i in images]))
    assert answer.get_response()["id"] == "r-7"
    assert answer.get_response()["model_version"] == "1"


def test_without_a_choice_all_tensors_come_back(remote: triton.InferenceServerClient) -> None:
    image = picture()
    answer = remote.infer("colours", [tensor(image[None])], model_version="2", headers=token())
    assert np.array_equal(answer.as_numpy("mask")[0], expected_mask(image, SWAPPED))
    confidence = answer.as_numpy("confidence")
    assert confidence.dtype == np.float32
    assert confidence.shape == (1, *image.shape[:2])
    assert 0.25 < float(confidence.min()) <= float(confidence.max()) <= 1.0


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_bodies(remote: triton.InferenceServerClient, compression: str) -> None:
    image = picture()
    answer = remote.infer("colours", [tensor(image[None])], headers=token(), request_compression_algorithm=compression)
    assert np.array_equal(answer.as_numpy("mask")[0], expected_mask(image))


def test_image_files_of_different_sizes(remote: triton.InferenceServerClient) -> None:
    images = [picture(20, 30, seed=1), picture(16, 12, seed=2)]
    files = triton.InferInput("encoded_image", [2], "BYTES")
    files.set_data_from_numpy(np.array([encoded(i) for i in images], dtype=np.object_))
    wanted = [triton.InferRequestedOutput("encoded_mask")]
    answer = remote.infer("colours", [files], outputs=wanted, headers=token())
    for image, file in zip(images, answer.as_numpy("encoded_mask"), strict=True):
        assert np.array_equal(decoded(file), expected_mask(image))
    with pytest.raises(InferenceServerException, match=r"differ in size.*encoded_mask"):
        remote.infer("colours", [files], outputs=[triton.InferRequestedOutput("mask")], headers=token())


def test_async_requests_are_batched(remote: triton.InferenceServerClient) -> None:
    images = [picture(seed=seed) for seed in range(12)]
    pending = [remote.async_infer("colours", [tensor(i[None])], headers=token()) for i in images]
    for image, answer in zip(images, pending, strict=True):
        assert np.array_equal(answer.get_result().as_numpy("mask")[0], expected_mask(image))


def test_repository(remote: triton.InferenceServerClient) -> None:
    index = remote.get_model_repository_index(headers=token())
    assert [(r["name"], r["version"], r["state"]) for r in index] == [
        ("colours", "1", "READY"),
        ("colours", "2", "READY"),
    ]
    with pytest.raises(InferenceServerException, match="token"):
        remote.load_model("colours")
    remote.load_model("colours", headers=token())
    remote.unload_model("colours", headers=token())
    with pytest.raises(InferenceServerException, match="colours is not loaded"):
        remote.infer("colours", [tensor(picture()[None])], headers=token())
    assert not remote.is_model_ready("colours", headers=token())
    remote.load_model("colours", headers=token())
    image = picture()
    answer = remote.infer("colours", [tensor(image[None])], headers=token())
    assert np.array_equal(answer.as_numpy("mask")[0], expected_mask(image))


def test_timeout_parameter(client: TestClient) -> None:
    body = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}],
        "parameters": {"timeout": 1},
    }
    answer = client.post(INFER, json=body)
    assert answer.status_code == 504
    assert "deadline" in answer.json()["error"]


def test_raw_mode_takes_one_image_file(client: TestClient) -> None:
    image = picture()
    answer = client.post(INFER, content=encoded(image), headers={LENGTH: "0"})
    assert answer.status_code == 200, answer.text
    head = int(answer.headers[LENGTH])
    assert json.loads(answer.content[:head])["outputs"][0]["parameters"] == {"binary_data_size": 24 * 30}
    assert np.array_equal(np.frombuffer(answer.content[head:], np.uint8).reshape(24, 30), expected_mask(image))


def image_input(**changes: Any) -> dict[str, Any]:
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0], **changes}
    return {"inputs": [{key: value for key, value in entry.items() if value is not None}]}


BAD_JSON = [
    ({}, "inputs is a list with one tensor"),
    ({"inputs": []}, "inputs is a list with one tensor"),
    (image_input(name="imgae"), "Did you mean 'image'"),
    (image_input(datatype="FP32"), "datatype FP32, expected UINT8"),
    (image_input(name=["image"]), "no input"),
    (image_input(datatype=[]), "no datatype"),
    (image_input(datatype={}), "no datatype"),
    ({**image_input(), "outputs": [{"name": {}}]}, "no output"),
    (image_input(datatype="UNIT8"), "Did you mean 'UINT8'"),
    (image_input(shape=[1, 3, 1, 1]), "looks like NCHW"),
    (image_input(shape=[1, 1, 3]), r"shape is \[N, H, W, 3\]"),
    (image_input(shape=[0, 1, 1, 3], data=[]), "has no pixels"),
    (image_input(shape=[1, -1, 1, 3]), "whole numbers"),
    (image_input(shape="1,1,1,3"), "shape is a list"),
    (image_input(data=[0, 0]), "data holds 2 numbers"),
    (image_input(data=[0, 0, 256]), "from 0 to 255"),
    (image_input(data=[0, 0, 10**30]), "from 0 to 255|too large"),
    (image_input(data=[0, 0.5, 0]), "whole numbers"),
    (image_input(data=[[0], [0, 0]]), "ragged|whole numbers"),
    (image_input(data=None), "neither data nor"),
    (image_input(parameters={"binary_data_size": 3}), "both data and binary_data_size"),
    (image_input(data=None, parameters={"binary_data_size": -1}), "whole number of bytes"),
    (image_input(data=None, parameters={"binary_data_size": 3}), "holds 0 bytes"),
    (image_input(data=None, parameters={"shared_memory_region": "x"}), "shared memory is not supported"),
    (image_input(name="encoded_image", datatype="BYTES", shape=[1], data=["x"]), "not UTF-8 text"),
    ({**image_input(), "outputs": [{"name": "maks"}]}, "Did you mean 'mask'"),
    ({**image_input(), "outputs": []}, "outputs is empty"),
    ({**image_input(), "outputs": [{"name": "mask"}, {"name": "mask"}]}, "asked for twice"),
    ({**image_input(), "outputs": [{"name": "confidence"}]}, "exported without confidence"),
    ({**image_input(), "outputs": [{"name": "mask", "parameters": {"binary_data": 1}}]}, "true or false"),
    ({**image_input(), "id": 5}, "id is a text"),
    ({**image_input(), "parameters": {"timeout": "soon"}}, "microseconds"),
    ({**image_input(), "parameters": []}, "are an object"),
    ([1, 2], "JSON object"),
]


@pytest.mark.parametrize(("body", "message"), BAD_JSON)
def test_bad_json_requests(client: TestClient, body: Any, message: str) -> None:
    answer = client.post(INFER, json=body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer.json()["error"])


def framed(document: Any, blob: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    return head + blob, {LENGTH: str(len(head))}


def binary_input(size: int, **changes: Any) -> dict[str, Any]:
    return image_input(data=None, parameters={"binary_data_size": size}, **changes)


def encoded_input(size: int, count: int = 1) -> dict[str, Any]:
    return binary_input(size, name="encoded_image", datatype="BYTES", shape=[count])


BAD_BODIES = [
    (*framed(binary_input(3), b"ab"), "holds 2 bytes"),
    (*framed(binary_input(3), b"abcd"), "1 bytes more"),
    (*framed(binary_input(2), b"ab"), "has 3 bytes, binary_data_size is 2"),
    (*framed(image_input(), b"ab"), "2 bytes after its JSON part"),
    (*framed(encoded_input(3), b"\1\0\0"), "ends inside a length"),
    (*framed(encoded_input(5), b"\xff\xff\xff\xffx"), "says it has 4294967295 bytes"),
    (*framed(encoded_input(5, 2), b"\1\0\0\0x"), "holds 1 element"),
    (*framed(encoded_input(10), b"\1\0\0\0x\1\0\0\0x"), "more than the 1 element"),
    (b"{}", {LENGTH: "99999999999999999999"}, "length of the JSON part"),
    (b"{}", {LENGTH: "3"}, "from 0 to the 2"),
    (b"{}", {LENGTH: "-1"}, "length of the JSON part"),
    (b"{}", {LENGTH: "two"}, "length of the JSON part"),
    (b"", {LENGTH: "0"}, "body is empty"),
    (b"", {}, "no JSON"),
    (b"\xff\xfe", {}, "not UTF-8"),
    (b'{"inputs": [NaN]}', {}, "no JSON"),
    (b"[" * 100_000, {}, "nested too deeply|no JSON"),
    (b"not gzip", {"Content-Encoding": "gzip"}, "not valid gzip"),
    (gzip.compress(b"{}", mtime=0)[:-4], {"Content-Encoding": "gzip"}, "cut short"),
]


@pytest.mark.parametrize(("body", "headers", "message"), BAD_BODIES)
def test_bad_bodies(client: TestClient, body: bytes, headers: dict[str, str], message: str) -> None:
    answer = client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer.json()["error"])


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/v2/models/colors/infer", 404, "Did you mean 'colours'"),
        ("/v2/models/colours/versions/9/infer", 404, "Version 9 of colours is not loaded"),
        ("/v2/models/colours/versions/one/infer", 400, "A version is a number"),
        ("/v2/models/..%2F..%2Fetc/infer", 404, "nothing at|no model"),
        ("/v2/model/colours/infer", 404, "nothing at"),
    ],
)
def test_unknown_places(client: TestClient, path: str, code: int, message: str) -> None:
    answer = client.post(path, json=image_input())
    assert answer.status_code == code
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer.json()["error"])


def test_wrong_verb_and_encoding(client: TestClient) -> None:
    assert client.get(INFER).status_code == 405
    assert "error" in client.get(INFER).json()
    answer = client.post(INFER, content=b"x", headers={"Content-Encoding": "br"})
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]


def test_a_decompression_bomb_is_refused(open_client: Any) -> None:
    from cilseg_serve.server.settings import Limits

    client = open_client(limits=Limits(body_bytes=100_000))
    answer = client.post(INFER, content=gzip.compress(b" " * 50_000_000, mtime=0), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert "unpacks to more than 100,000 bytes" in answer.json()["error"]


def test_a_model_that_was_never_exported_stops_the_start(registry: Registry, tmp_path: Path) -> None:
    from cilseg.errors import NotFoundError
    from cilseg_serve.server.app import make_app
    from cilseg_serve.server.settings import ServerSettings

    register(registry, tmp_path, name="plain", seed=3)
    app = make_app(ServerSettings(refs=("plain:1",)), registry=registry)
    with pytest.raises(NotFoundError, match="no exported model"), TestClient(app):
        pass
