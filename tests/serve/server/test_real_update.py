"""The update service with the real training, through a real server process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
import torch
from server_world import make_model, running

from cilseg.registry import Registry
from tests.update.update_story import tell


@pytest.mark.systems
def test_tags_in_a_candidate_with_its_verdict_out(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    story = tell(tmp_path / "story")
    registry = Registry.open(story.root / "registry")
    parent = registry.resolve("shapes:1")
    metadata = {"parity": {"passed": True}}
    registry.attach(parent, "model.onnx", make_model(), kind="onnx", metadata=metadata)
    document = json.loads(story.tag_list(tmp_path / "tags.json").read_text()) | {"image_root": "scenes"}
    with running(registry.root, "--images", f"scenes={story.scenes / 'images'}") as server:
        started = httpx.post(f"{server.url}/v1/updates", json={"tags": document, "options": {"seed": 5}})
        assert started.status_code == 200, started.text
        url = f"{server.url}/v1/updates/{started.json()['id']}"
        end = time.monotonic() + 300
        while (update := httpx.get(url).json())["state"] in ("queued", "running"):
            assert time.monotonic() < end, update
            time.sleep(0.2)
        assert update["state"] == "done", (update, httpx.get(f"{url}/log").text)
        assert update["parent"] == "shapes:1"
        assert update["candidate"] == "shapes:2"
        assert update["verdict"] in ("PROMOTE", "HOLD", "REJECT")
        assert update["headline"]
        assert httpx.get(f"{server.url}{update['report']}").headers["content-type"].startswith("text/html")
        (model,) = httpx.get(f"{server.url}/v1/models").json()
        assert [(v["version"], v["aliases"], v["gate"]) for v in model["versions"]] == [
            (1, ["production"], None),
            (2, ["candidate"], update["verdict"]),
        ]
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    candidate = registry.resolve("shapes@candidate")
    assert candidate.manifest.seed == 5
    assert candidate.manifest.parent == parent.digest
