"""``POST /v1/segment`` as curl uses it, and what it refuses."""

from __future__ import annotations

import base64
import io
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_world import decoded, encoded, expected_mask, make_model, opened, picture, register
from starlette.testclient import TestClient

from cilseg.errors import NotFoundError
from cilseg.registry import Registry
from cilseg_serve.server.settings import Batching, Limits

URL = "/v1/segment"


def test_a_class_map_comes_back(client: TestClient) -> None:
    image = picture()
    answer = client.post(URL, content=encoded(image))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-cilseg-model"] == "colours:1"
    assert "run;dur=" in answer.headers["server-timing"]
    assert np.array_equal(decoded(answer.content), expected_mask(image))
    assert Image.open(io.BytesIO(answer.content)).getpalette()


def test_a_form_and_json(client: TestClient) -> None:
    image = picture()
    mask = expected_mask(image)
    answer = client.post(
        URL, files={"image": ("a.png", encoded(image))}, params={"format": "json", "mask": True, "model": "colours"}
    )
    found = answer.json()
    assert (found["model"], found["version"], found["width_px"], found["height_px"]) == ("colours", "1", 30, 24)
    names = ("background", "red", "green", "blue")
    assert found["coverage"] == {n: float((mask == i).mean()) for i, n in enumerate(names)}
    assert found["present"] == ["red", "green", "blue"]
    assert np.array_equal(decoded(base64.b64decode(found["mask_png"])), mask)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("application/json", "application/json"),
        ("image/jpeg", "image/jpeg"),
        ("text/html, image/png;q=0.9", "image/png"),
        ("*/*", "image/png"),
    ],
)
def test_accept_decides(client: TestClient, accept: str, media: str) -> None:
    answer = client.post(URL, content=encoded(picture()), headers={"Accept": accept})
    assert answer.headers["content-type"] == media


def test_an_overlay_has_the_size_of_the_image(client: TestClient) -> None:
    answer = client.post(URL, content=encoded(picture(40, 50)), params={"format": "overlay"})
    assert Image.open(io.BytesIO(answer.content)).size == (50, 40)


def test_one_pixel_is_an_image(client: TestClient) -> None:
    answer = client.post(URL, content=encoded(np.full((1, 1, 3), (0, 200, 0), np.uint8)))
    assert decoded(answer.content).tolist() == [[2]]


def animated() -> bytes:
    frames = [Image.fromarray(picture(seed=s)) for s in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def huge_header(side: int) -> bytes:
    """A PNG of some hundred bytes whose header states ``side`` x ``side`` pixels."""
    data = bytearray(encoded(picture()))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", 422, "is empty"),
        (b"hello, this is text", 422, "not an image that can be read"),
        (encoded(picture())[:-60], 422, "truncated or corrupt"),
        (encoded(picture(), "JPEG")[:200], 422, "damaged|truncated"),
        (animated(), 422, "2 frames"),
        (huge_header(9000), 413, "9000 x 9000 px; this server takes at most 50,000,000 pixels"),
        (huge_header(40_000), 422, "too large"),
    ],
    ids=["empty", "text", "cut-png", "cut-jpeg", "animated", "large", "bomb"],
)
def test_bad_images(client: TestClient, body: bytes, code: int, message: str) -> None:
    answer = client.post(URL, content=body)
    assert answer.status_code == code
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer.json()["error"])


def test_an_image_too_wide_for_the_network(open_client: Any, registry: Any, tmp_path: Any) -> None:
    register(registry, tmp_path, name="resized", model=make_model(), seed=5, short_side_px=64)
    client = open_client(refs=("resized",), limits=Limits(network_pixels=500_000))
    answer = client.post(URL, content=encoded(np.zeros((2, 30_000, 3), np.uint8)))
    assert answer.status_code == 413
    assert "would see this image of 30000 x 2 px at 960000 x 64 px" in answer.json()["error"]
    assert client.post(URL, content=encoded(picture())).status_code == 200


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"format": "overly"}, 400, "Did you mean 'overlay'"),
        ({"model": "colour"}, 404, "Did you mean 'colours'"),
        ({"version": "x"}, 400, "A version is a number"),
        ({"version": "7"}, 404, "Version 7 of colours is not loaded"),
        ({"confidence": "true"}, 400, "exported without confidence"),
        ({"confidence": "perhaps"}, 422, "query.confidence"),
    ],
)
def test_bad_options(client: TestClient, options: dict[str, str], code: int, message: str) -> None:
    answer = client.post(URL, content=encoded(picture()), params=options)
    assert answer.status_code == code
    assert message in answer.json()["error"]


def test_bad_forms(client: TestClient) -> None:
    answer = client.post(URL, files={"picture": ("a.png", encoded(picture()))})
    assert answer.status_code == 400
    assert "no file in a field named image; it has: picture" in answer.json()["error"]
    answer = client.post(URL, content=b"--x\r\ngarbage", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert answer.status_code == 400
    answer = client.post(URL, content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 400
    assert "error" in answer.json()


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_bad_timeouts(client: TestClient, timeout: str) -> None:
    answer = client.post(URL, content=encoded(picture()), headers={"X-Request-Timeout": timeout})
    assert answer.status_code == 400
    assert "number of seconds above 0" in answer.json()["error"]


def test_a_deadline_in_a_header(client: TestClient) -> None:
    answer = client.post(URL, content=encoded(picture()), headers={"X-Request-Timeout": "0.0000001"})
    assert answer.status_code == 504


def test_a_full_queue_is_429_and_nothing_is_lost(open_client: Any, registry: Any, tmp_path: Any) -> None:
    register(registry, tmp_path, name="slow", model=make_model(work=700), seed=6)
    client = open_client(refs=("slow",), batching=Batching(max_queue=2, max_batch=1))
    body, start = encoded(picture()), threading.Barrier(12)

    def send(_: int) -> Any:
        start.wait()
        return client.post(URL, content=body)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(send, range(12)))
    codes = [a.status_code for a in answers]
    assert set(codes) == {200, 429}
    refused = next(a for a in answers if a.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "images waiting, at most 2 may" in refused.json()["error"]
    assert client.post(URL, content=body).status_code == 200


def test_every_exported_model_is_served_and_the_others_are_named(
    open_client: Any, registry: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("plain", "sketch"):
        register(registry, tmp_path, name=name, seed=11)
    client = open_client(refs=())
    answer = client.post(URL, content=encoded(picture()))
    assert np.array_equal(decoded(answer.content), expected_mask(picture()))
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/plain").status_code == 404
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "plain" in r.getMessage()]
    assert "Not served" in warning
    assert "plain, sketch" in warning


def test_a_registry_without_any_exported_model_is_refused(tmp_path: Any) -> None:
    empty = Registry.open(tmp_path / "unexported")
    register(empty, tmp_path, name="plain", seed=12)
    with pytest.raises(NotFoundError, match=r"No model .* \(plain\)"), opened(empty, refs=()):
        pass


def test_several_models_have_to_be_named(open_client: Any, registry: Any, tmp_path: Any) -> None:
    register(registry, tmp_path, name="other", model=make_model((1, 0, 2)), seed=7)
    client = open_client(refs=())
    answer = client.post(URL, content=encoded(picture()))
    assert answer.status_code == 400
    assert "Name one of the models with ?model=: colours, other" in answer.json()["error"]
    for name, order in (("colours", (0, 1, 2)), ("other", (1, 0, 2))):
        answer = client.post(URL, content=encoded(picture()), params={"model": name})
        assert np.array_equal(decoded(answer.content), expected_mask(picture(), order))
