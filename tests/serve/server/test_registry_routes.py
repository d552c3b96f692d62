"""Models, verdicts, histories, promotion and rollback over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server_world import encoded, make_model, picture, register
from starlette.testclient import TestClient

from cilseg.bundle import write_manifest
from cilseg.registry import Registry
from cilseg_serve.server.access import parse_tokens
from tests.serve.tiny_model import make_manifest


@pytest.fixture
def boss(open_client: Any) -> TestClient:
    client: TestClient = open_client(tokens=parse_tokens(["a-secret-token"]))
    client.headers["Authorization"] = "Bearer a-secret-token"
    return client


def child(registry: Registry, folder: Path, *, verdict: str | None) -> None:
    """Register ``colours:3``, trained from ``colours:1``, with a verdict."""
    bundle = folder / "child"
    bundle.mkdir()
    (bundle / "checkpoint.safetensors").write_bytes(b"x")
    parent = registry.resolve("colours:1").digest
    write_manifest(bundle, make_manifest().model_copy(update={"seed": 9, "parent": parent}))
    version = registry.register("colours", bundle)
    registry.attach(version, "model.onnx", make_model((1, 0, 2)), kind="onnx", metadata={"parity": {"passed": True}})
    if verdict is not None:
        report = f'{{"verdict": "{verdict}", "reference_digest": "{parent}"}}'.encode()
        registry.attach(version, "gate.json", report, kind="gate")
        registry.attach(version, "gate.html", b"<!doctype html><title>gate</title>", kind="gate")


def answering(client: TestClient) -> str:
    return client.post("/v1/segment", content=encoded(picture())).headers["x-cilseg-model"]


def test_models_with_their_verdicts(boss: TestClient, registry: Registry, tmp_path: Path) -> None:
    child(registry, tmp_path, verdict="HOLD")
    register(registry, tmp_path, name="other", seed=7)
    colours, other = boss.get("/v1/models").json()
    assert (colours["name"], colours["served"], colours["default"], colours["follows"]) == (
        "colours",
        True,
        1,
        "colours",
    )
    assert [(v["version"], v["gate"], v["parent"], v["loaded"]) for v in colours["versions"]] == [
        (1, None, None, True),
        (2, None, None, False),
        (3, "HOLD", "colours:1", False),
    ]
    assert colours["versions"][0]["aliases"] == ["production"]
    assert (other["name"], other["served"]) == ("other", False)
    assert str(registry.root) not in boss.get("/v1/models").text
    details = boss.get("/v1/models/colours/versions/3")
    assert details.json()["gate"] == "HOLD"
    assert str(registry.root) not in details.text


def test_the_gate_report_is_a_page_that_can_do_nothing(boss: TestClient, registry: Registry, tmp_path: Path) -> None:
    child(registry, tmp_path, verdict="HOLD")
    page = boss.get("/v1/models/colours/versions/3/report")
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert boss.get("/v1/models/colours/versions/3/report?format=json").json()["verdict"] == "HOLD"
    missing = boss.get("/v1/models/colours/versions/1/report")
    assert missing.status_code == 404
    assert boss.get("/v1/models/colours/versions/1/report?format=pdf").status_code == 422


def test_promote_and_roll_back_at_once(boss: TestClient) -> None:
    assert answering(boss) == "colours:1"
    moved = boss.post(
        "/v1/models/colours/promote", json={"version": 2, "reason": "better", "who": "ann", "expect": "1"}
    )
    assert moved.status_code == 200, moved.text
    assert moved.json()["default"] == 2
    assert answering(boss) == "colours:2"
    back = boss.post("/v1/models/colours/rollback", json={"reason": "worse"}).json()
    assert (back["default"], back["event"]["action"]) == (1, "rollback")
    assert answering(boss) == "colours:1"
    history = boss.get("/v1/models/colours/history").json()
    assert [(e["to_number"], e["why"]) for e in history] == [(1, ""), (2, "better"), (1, "worse")]
    assert history[1]["who"].startswith("ann via ")


def test_the_gate_holds_over_http_too(boss: TestClient, registry: Registry, tmp_path: Path) -> None:
    child(registry, tmp_path, verdict="REJECT")
    refused = boss.post("/v1/models/colours/promote", json={"version": 3})
    assert refused.status_code == 409
    assert "The gate said REJECT" in refused.json()["error"]
    refused = boss.post("/v1/models/colours/promote", json={"version": 3, "force": True})
    assert refused.status_code == 422
    assert "needs a reason" in refused.json()["error"]
    forced = boss.post("/v1/models/colours/promote", json={"version": 3, "force": True, "reason": "only one we have"})
    assert forced.json()["event"]["forced"] is True
    assert answering(boss) == "colours:3"


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/models/colours/promote", {"version": 9}, 404),
        ("/v1/models/cats/promote", {"version": 1}, 404),
        ("/v1/models/colours/promote", {"version": 0}, 422),
        ("/v1/models/colours/promote", {"version": "two"}, 422),
        ("/v1/models/colours/promote", {"version": 2, "alias": "Not Allowed"}, 422),
        ("/v1/models/colours/promote", {"version": 2, "expect": "2"}, 409),
        ("/v1/models/colours/promote", {"version": 2, "surprise": 1}, 422),
        ("/v1/models/colours/rollback", {"steps": 0}, 422),
        ("/v1/models/colours/rollback", {}, 409),
        ("/v1/models/cats/rollback", {}, 404),
    ],
)
def test_bad_moves(boss: TestClient, path: str, body: dict[str, Any], code: int) -> None:
    answer = boss.post(path, json=body)
    assert answer.status_code == code, answer.text
    assert list(answer.json()) == ["error"]
    assert answering(boss) == "colours:1"
