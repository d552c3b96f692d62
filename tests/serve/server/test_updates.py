"""The update service with a stand-in for the training: queue, log, cancel, resume, crashes, watched folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_world import encoded, opened, picture, running, two_versions
from starlette.testclient import TestClient

from cilseg.registry import Registry

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_update.py")))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


def make_photos(parent: Path) -> Path:
    folder = parent / "photos"
    (folder / "night").mkdir(parents=True)
    for name in ("a.png", "b.png", "night/c.png"):
        (folder / name).write_bytes(encoded(picture()))
    (parent / "secret.png").write_bytes(encoded(picture()))
    (folder / "link.png").symlink_to(parent / "secret.png")
    return folder


@pytest.fixture
def client(open_client: Any, photos: Path) -> TestClient:
    return open_client(image_roots=(("photos", photos),), update_command=STAND_IN)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server that is only sent what it refuses."""
    folder = tmp_path_factory.mktemp("refusing")
    photos = make_photos(folder)
    with opened(two_versions(folder), image_roots=(("photos", photos),), update_command=STAND_IN) as client:
        yield client


def tag_list(
    *, root: str | None = "photos", files: tuple[str, ...] = ("a.png", "b.png"), **plan: Any
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "classes": [{"name": "cow"}],
        "images": [{"file": f, "present": ["cow"] if f == files[0] else []} for f in files],
    }
    return document | ({"image_root": root} if root else {}) | ({"plan": plan} if plan else {})


def wait_for(get: Callable[[], dict[str, Any]], *states: str, limit_s: float = 30) -> dict[str, Any]:
    end = time.monotonic() + limit_s
    while (found := get())["state"] not in states:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def start(client: Any, **fields: Any) -> str:
    answer = client.post("/v1/updates", json=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "queued"
    return str(answer.json()["id"])


def show(client: Any, update: str) -> dict[str, Any]:
    return dict(client.get(f"/v1/updates/{update}").json())


def test_a_candidate_with_its_verdict_and_nothing_is_promoted(client: TestClient, registry: Registry) -> None:
    update = start(client, tags=tag_list(steps=6), options={"model": "colours", "method": "wilson", "seed": 3})
    running_now = wait_for(lambda: show(client, update), "running", "done")
    assert running_now["parent"] == "colours:1"
    while (now := show(client, update))["state"] == "running":
        if now["progress"]:
            assert now["progress"]["iteration"] >= 1
            assert now["progress"]["losses"]["loss"] > 0
        time.sleep(0.05)
    done = show(client, update)
    assert (done["state"], done["candidate"], done["verdict"]) == ("done", "colours:2", "HOLD")
    assert done["report"] == "/v1/models/colours/versions/2/report"
    assert done["images"] == 2
    log = client.get(f"/v1/updates/{update}/log")
    assert "from colours:1 ['from', 'image_root', 'json', 'method', 'seed', 'tags']" in log.text
    assert "step 6" in log.text
    assert int(log.headers["x-next-offset"]) == len(log.content)
    assert registry.resolve("colours@production").number == 1
    assert [u["id"] for u in client.get("/v1/updates").json()] == [update]
    assert 'cilseg_update_count{state="done"} 1.0' in client.get("/metrics").text


def test_one_at_a_time_in_order(client: TestClient) -> None:
    first = start(client, tags=tag_list(steps=5))
    second = start(client, tags=tag_list(steps=1))
    wait_for(lambda: show(client, first), "running")
    assert show(client, second)["state"] == "queued"
    wait_for(lambda: show(client, second), "done")
    assert show(client, first)["state"] == "done"
    assert show(client, first)["finished_at"] <= show(client, second)["started_at"]


def test_a_failure_says_what_the_training_said(client: TestClient) -> None:
    update = start(client, tags=tag_list(exit=2))
    failed = wait_for(lambda: show(client, update), "failed")
    assert failed["error"] == "error: the tags make no sense\n  - line two"
    assert failed["candidate"] is None


def test_cancel_and_resume(client: TestClient) -> None:
    update = start(client, tags=tag_list(steps=100))
    wait_for(lambda: show(client, update), "running")
    while not show(client, update)["progress"]:
        time.sleep(0.05)
    assert client.post(f"/v1/updates/{update}/resume").status_code == 409
    client.post(f"/v1/updates/{update}/cancel")
    wait_for(lambda: show(client, update), "cancelled")
    assert client.post(f"/v1/updates/{update}/cancel").status_code == 409
    assert client.post(f"/v1/updates/{update}/resume").json()["state"] == "queued"
    done = wait_for(lambda: show(client, update), "done")
    assert done["attempts"] == 2
    lines = client.get(f"/v1/updates/{update}/log").text.splitlines()
    starts = [line for line in lines if line.startswith("starting at")]
    assert starts[0].startswith("starting at 0 ")
    assert not starts[1].startswith("starting at 0 ")
    assert "'resume'" in starts[1]
    assert lines.count("step 100") == 1


def test_a_waiting_update_is_cancelled_at_once(client: TestClient) -> None:
    start(client, tags=tag_list(steps=20))
    second = start(client, tags=tag_list())
    assert client.post(f"/v1/updates/{second}/cancel").json()["state"] == "cancelled"


def test_images_come_with_the_request(client: TestClient) -> None:
    files = [
        ("tags", ("tags.json", json.dumps(tag_list(root=None, files=("x.png", "sub/y.png"))))),
        ("images", ("x.png", encoded(picture()))),
        ("images", ("sub/y.png", encoded(picture()))),
    ]
    answer = client.post("/v1/updates", files=files, data={"options": '{"from": "colours:2"}'})
    assert answer.status_code == 200, answer.text
    done = wait_for(lambda: show(client, answer.json()["id"]), "done")
    assert (done["images"], done["parent"], done["source"]) == (2, "colours:2", {"kind": "upload"})


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, 400, "Give either tags"),
        ({"tags": {}, "tag_list": "x"}, 400, "Give either tags"),
        ({"tag_list": "nothing"}, 400, "no tag list 'nothing'"),
        ({"tag_list": "../../x"}, 400, "Tag list name"),
        ({"tags": {"images": []}}, 422, "no images in it"),
        ({"tags": tag_list(files=("../secret.png",))}, 422, "leads out of the folder"),
        ({"tags": tag_list(files=("/etc/passwd",))}, 422, "leads out of the folder"),
        ({"tags": tag_list(files=("link.png",))}, 422, "leads out of the folder"),
        ({"tags": tag_list(files=("missing.png", "b.png"))}, 422, "There is no file 'missing.png'"),
        ({"tags": tag_list(root="/etc")}, 403, "not below an allowed folder"),
        ({"tags": tag_list(root="photos/../..")}, 403, "not below an allowed folder"),
        ({"tags": {"images": [{"file": "a.png", "prior": "../secret.png"}]}}, 422, "images[0].prior"),
        ({"tags": tag_list(), "options": {"config": "x"}}, 422, "options.config"),
        ({"tags": tag_list(), "options": {"seed": -1}}, 422, "options.seed"),
        ({"tags": tag_list(), "options": {"method": "--help"}}, 422, "options.method"),
        ({"tags": tag_list(), "options": {"model": "cats"}}, 404, "no model 'cats'"),
        ({"tags": tag_list(), "options": {"from": "colours:9"}}, 404, "no version colours:9"),
        ({"tags": tag_list(), "options": {"from": "--help"}}, 422, "Reference|not allowed"),
    ],
)
def test_bad_updates(refusing: TestClient, body: dict[str, Any], code: int, message: str) -> None:
    client = refusing
    answer = client.post("/v1/updates", json=body)
    assert answer.status_code == code, answer.text
    assert message.split("|")[0] in answer.json()["error"] or message.split("|")[-1] in answer.json()["error"]
    assert client.get("/v1/updates").json() == []


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "x.sh", "a\\..\\x.png", ""])
def test_bad_names_of_uploads(refusing: TestClient, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    client, tmp_path = refusing, tmp_path_factory.getbasetemp()
    files = [("tags", ("t.json", json.dumps({name or "a.png": ["cow"]}))), ("images", (name, encoded(picture())))]
    before = sorted(p for p in tmp_path.rglob("*.png"))
    answer = client.post("/v1/updates", files=files)
    assert answer.status_code in (400, 422)
    assert sorted(p for p in tmp_path.rglob("*.png")) == before
    assert client.get("/v1/updates").json() == []


@pytest.mark.parametrize("update", ["nothing", "..", "20260101T000000-000000-abcdef", "%2e%2e%2fx"])
def test_unknown_updates(refusing: TestClient, update: str) -> None:
    client = refusing
    for answer in (client.get(f"/v1/updates/{update}"), client.post(f"/v1/updates/{update}/cancel")):
        assert answer.status_code in (404, 405)
        assert "error" in answer.json()


def serve_with_stand_in(registry: Path, photos: Path, folder: Path, *arguments: object) -> Any:
    """A server process whose updates are the stand-in's."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'serve' in sys.argv:\n"
        "    from cilseg_serve.server import settings\n"
        f"    defaults = {STAND_IN!r}\n"
        "    was = settings.ServerSettings.__init__.__defaults__\n"
        "    settings.ServerSettings.__init__.__defaults__ = tuple(\n"
        "        defaults if isinstance(d, tuple) and 'update' in d else d for d in was\n"
        "    )\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    env = {"PYTHONPATH": path, "CILSEG_TOKENS": "a-secret-token"}
    return running(registry, "colours", "--images", photos, *arguments, env=env)


HEADERS = {"Authorization": "Bearer a-secret-token"}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_a_killed_server_resumes_its_update(registry: Registry, photos: Path, tmp_path: Path) -> None:
    with serve_with_stand_in(registry.root, photos, tmp_path) as server:
        with httpx.Client(base_url=server.url, headers=HEADERS) as client:
            update = start(client, tags=tag_list(steps=60))
            while not show(client, update).get("progress"):
                time.sleep(0.05)
        server.process.send_signal(signal.SIGKILL)
        server.wait()
    job = json.loads((registry.root / "serve" / "updates" / update / "job.json").read_text())
    assert job["state"] == "running"
    assert alive(job["pid"])
    with serve_with_stand_in(registry.root, photos, tmp_path) as server:
        with httpx.Client(base_url=server.url, headers=HEADERS) as client:
            done = wait_for(lambda: show(client, update), "done", "failed")
            log = client.get(f"/v1/updates/{update}/log").text
        assert not alive(job["pid"])
    assert (done["state"], done["attempts"]) == ("done", 2)
    assert log.splitlines().count("step 60") == 1
    assert log.count("starting at 0 ") == 1
    assert "secrets seen: False" in log


def test_sigterm_puts_the_update_back_into_the_queue(registry: Registry, photos: Path, tmp_path: Path) -> None:
    with serve_with_stand_in(registry.root, photos, tmp_path) as server:
        with httpx.Client(base_url=server.url, headers=HEADERS) as client:
            update = start(client, tags=tag_list(steps=100))
            while not show(client, update).get("progress"):
                time.sleep(0.05)
            texts: list[str] = []

            def follow() -> None:
                with httpx.stream(
                    "GET", f"{server.url}/v1/updates/{update}/log?follow=true", headers=HEADERS
                ) as answer:
                    texts.extend(answer.iter_text())

            reader = threading.Thread(target=follow)
            reader.start()
            time.sleep(0.3)
        server.terminate()
        assert server.wait() == 0
        reader.join()
        assert "step 1" in "".join(texts)
    job = json.loads((registry.root / "serve" / "updates" / update / "job.json").read_text())
    assert (job["state"], job["pid"]) == ("queued", None)


def test_a_watched_folder(registry: Registry, open_client: Any, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "images").mkdir(parents=True)
    for name in ("a.png", "images/b.png"):
        (inbox / name).write_bytes(encoded(picture()))
    (inbox / "short.json").write_text(json.dumps({"a.png": ["cow"], "images/b.png": []}))
    client = open_client(watch_dir=inbox, update_command=STAND_IN)
    end = time.monotonic() + 30
    while not (found := client.get("/v1/updates").json()) or found[0]["state"] != "done":
        assert time.monotonic() < end, found
        time.sleep(0.1)
    assert found[0]["source"]["file"] == "short.json"
    (inbox / "root.json").write_text(json.dumps(tag_list(root="images", files=("b.png",))))
    (inbox / "evil.json").write_text(json.dumps(tag_list(root="..", files=("secret.png",))))
    (inbox / "broken.json").write_text("{")
    while len(found := client.get("/v1/updates").json()) < 4 or found[0]["state"] not in ("done", "failed"):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    wait_for(lambda: next(u for u in client.get("/v1/updates").json() if u["source"]["file"] == "root.json"), "done")
    by_file = {u["source"]["file"]: u for u in client.get("/v1/updates").json()}
    assert by_file["evil.json"]["state"] == "failed"
    assert "not below an allowed folder" in by_file["evil.json"]["error"]
    assert "no JSON" in by_file["broken.json"]["error"]
    time.sleep(2.5)
    assert len(client.get("/v1/updates").json()) == 4
    assert registry.resolve("colours@production").number == 1
