"""The server as a process: stopping in order, clients that leave, slow and broken connections."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_world import Process, encoded, make_model, picture, register, running

from cilseg.registry import Registry

BODY = encoded(picture())


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """``slow:1``, whose runs take about a second."""
    folder = tmp_path_factory.mktemp("slow")
    registry = Registry.open(folder / "registry")
    register(registry, folder, name="slow", model=make_model(work=2600), seed=1)
    return registry


def send(url: str, into: list[Any]) -> threading.Thread:
    def work() -> None:
        try:
            into.append(httpx.post(f"{url}/v1/segment", content=BODY, timeout=60))
        except httpx.HTTPError as error:
            into.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until_busy(server: Process, count: int) -> None:
    for _ in range(500):
        text = httpx.get(f"{server.url}/metrics").text
        # the request for the metrics is one of them
        if f"cilseg_request_in_flight {count + 1:.1f}" in text:
            return
        time.sleep(0.01)
    raise AssertionError(text)


def test_sigterm_answers_what_is_in_flight_and_refuses_the_rest(slow: Registry) -> None:
    with running(slow.root, "--threads", 1, "--workers", 1, "--max-batch", 1) as server:
        answers: list[Any] = []
        threads = [send(server.url, answers) for _ in range(2)]
        until_busy(server, 2)
        server.terminate()
        time.sleep(0.15)
        late = httpx.post(f"{server.url}/v1/segment", content=BODY)
        assert late.status_code == 503
        assert "is stopping" in late.json()["error"]
        assert late.headers["retry-after"] == "1"
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        for thread in threads:
            thread.join()
        assert [a.status_code for a in answers] == [200, 200]
        assert server.wait() == 0
    assert not list((slow.root / "leases").glob("*.json"))


def test_a_second_signal_stops_at_once(slow: Registry) -> None:
    with running(slow.root, "--threads", 1) as server:
        answers: list[Any] = []
        thread = send(server.url, answers)
        until_busy(server, 1)
        server.terminate()
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        server.wait(15)
        thread.join()


def test_who_leaves_is_taken_out_of_the_queue(slow: Registry) -> None:
    with running(slow.root, "--threads", 1, "--workers", 1, "--max-batch", 1) as server:
        answers: list[Any] = []
        thread = send(server.url, answers)
        until_busy(server, 1)
        leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        head = f"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        for connection in leaving:
            connection.sendall(head + BODY)
        until_busy(server, 6)
        for connection in leaving:
            connection.close()
        thread.join()
        until_busy(server, 0)
        assert answers[0].status_code == 200
        text = httpx.get(f"{server.url}/metrics").text
        # on a busy machine one or two of them may have been running already when they left
        ran = re.search(r'cilseg_image_total{model="slow",version="1"} (\d+)', text)
        assert ran is not None
        assert int(ran[1]) <= 3
        assert 'code="499"' in text
        gone = [line for line in server.log() if line.get("code") == 499]
        assert len(gone) == 5


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("quick")
    registry = Registry.open(folder / "registry")
    register(registry, folder, model=make_model(), seed=1)
    (folder / "sitecustomize.py").write_text(
        # short limits, which the command line does not offer
        "import dataclasses, sys\n"
        "if 'serve' in sys.argv:\n"
        "    from cilseg_serve.server import settings\n"
        "    settings.Limits.__init__.__defaults__ = tuple(\n"
        "        {'header_s': 0.5, 'body_idle_s': 0.5}.get(f.name, f.default)\n"
        "        for f in dataclasses.fields(settings.Limits)\n"
        "    )\n"
    )
    path = ":".join([str(folder), *filter(None, sys.path)])
    with running(registry.root, env={"PYTHONPATH": path}) as server:
        yield server


def talk(server: Process, data: bytes, *, limit_s: float = 10) -> bytes:
    """Send ``data`` and return everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(limit_s)
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def error_in(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


@pytest.mark.parametrize("data", [b"", b"POST /v1/segment HTTP/1.1\r\nhost: local"], ids=["nothing", "half a head"])
def test_a_slow_head(quick: Process, data: bytes) -> None:
    answer = talk(quick, data)
    assert answer.startswith(b"HTTP/1.1 408")
    assert "was not complete after 0.5 s" in error_in(answer)


def test_a_slow_head_after_a_good_request(quick: Process) -> None:
    good = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = talk(quick, good + b"GET /v2 HT")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_a_slow_body(quick: Process) -> None:
    answer = talk(quick, b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408")
    assert "stopped after 3 bytes" in error_in(answer)


def test_a_body_over_the_limit_gets_its_answer(quick: Process) -> None:
    head = b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999999\r\n\r\n"
    answer = talk(quick, head + b"x" * 200_000)
    assert answer.startswith(b"HTTP/1.1 413")
    assert "999,999,999 bytes or more, at most 67,108,864" in error_in(answer)


def test_a_chunked_body_over_the_limit(quick: Process) -> None:
    def chunks() -> Any:
        for _ in range(80):
            yield b"x" * 2**20

    answer = httpx.post(f"{quick.url}/v1/segment", content=chunks(), timeout=60)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\ncontent-length: ten\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / SPDY/9\r\n\r\n",
    ],
    ids=["many headers", "long path", "tls", "bad length", "bad chunk", "bad version"],
)
def test_broken_heads(quick: Process, data: bytes) -> None:
    try:
        answer = talk(quick, data)
    except ConnectionResetError:
        answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
    assert httpx.get(f"{quick.url}/v2/health/ready").status_code == 200


def test_logs_are_json_with_request_ids(quick: Process) -> None:
    answer = httpx.post(f"{quick.url}/v1/segment", content=BODY, headers={"X-Request-ID": "from-client.1"})
    assert answer.headers["x-request-id"] == "from-client.1"
    made = httpx.get(f"{quick.url}/v2", headers={"X-Request-ID": 'evil"\x20id'}).headers["x-request-id"]
    assert "evil" not in made
    time.sleep(0.2)
    line = next(line for line in quick.log() if line.get("request_id") == "from-client.1")
    assert line["code"] == 200
    assert line["model"] == "colours:1"
    assert line["path"] == "/v1/segment"
    assert line["duration_s"] > 0


def test_the_process_never_loads_torch(quick: Process) -> None:
    httpx.post(f"{quick.url}/v1/segment", content=BODY)
    maps = Path(f"/proc/{quick.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps


def test_a_taken_port_and_an_open_address_are_refused(quick: Process, tmp_path: Path) -> None:
    from cilseg.errors import InputError
    from cilseg_serve.server.process import serve
    from cilseg_serve.server.settings import ServerSettings

    with pytest.raises(InputError, match=f"Cannot listen on 127.0.0.1, port {quick.port}"):
        serve(ServerSettings(registry=tmp_path, port=quick.port))
    for host in ("0.0.0.0", "::", "example.com"):
        with pytest.raises(InputError, match="Without a token the server listens on this machine only"):
            serve(ServerSettings(registry=tmp_path, host=host))
