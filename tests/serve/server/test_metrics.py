"""Prometheus metrics: what is counted, and that the dashboard asks only for what there is."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_world import encoded, picture
from starlette.testclient import TestClient

from cilseg_serve.server.access import parse_tokens

DASHBOARD = Path(__file__).parents[3] / "serve" / "grafana" / "cilseg.json"


def read(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Any, name: str, **labels: str) -> float:
    return float(found[name, tuple(sorted(labels.items()))])


def test_requests_images_pixels_and_confidence(open_client: Any) -> None:
    client = open_client(refs=("colours:2",))
    half_red = np.zeros((64, 64, 3), np.uint8)
    half_red[:, :32] = (250, 0, 0)
    for _ in range(3):
        client.post("/v1/segment", content=encoded(half_red))
    client.post("/v1/segment", content=b"no image")
    client.get("/somewhere/else")
    client.request("BREW", "/somewhere/else")
    found = read(client)
    at = {"model": "colours", "version": "2"}
    assert value(found, "cilseg_request_total", route="/v1/segment", method="POST", code="200") == 3
    assert value(found, "cilseg_request_total", route="/v1/segment", method="POST", code="422") == 1
    assert value(found, "cilseg_request_total", route="unmatched", method="GET", code="404") == 1
    assert value(found, "cilseg_request_total", route="unmatched", method="other", code="404") == 1
    assert value(found, "cilseg_request_duration_seconds_count", route="/v1/segment") == 4
    assert value(found, "cilseg_image_total", **at) == 3
    assert value(found, "cilseg_batch_size_sum", **at) == 3
    assert value(found, "cilseg_queue_duration_seconds_count", **at) == 3
    pixels = {c: value(found, "cilseg_class_pixel_total", **at, **{"class": c}) for c in ("background", "blue")}
    assert pixels["background"] == pixels["blue"] > 0
    assert value(found, "cilseg_class_pixel_ratio", **at, **{"class": "blue"}) == pytest.approx(0.5)
    assert value(found, "cilseg_confidence_count", **at) >= 1
    info = [labels for (name, labels), _ in found.items() if name == "cilseg_model_info"]
    assert dict(info[0])["default"] == "true"
    assert value(found, "cilseg_request_in_flight") == 1


def test_gauges_of_an_unloaded_version_vanish(open_client: Any) -> None:
    tokens = parse_tokens(["a-secret-token"])
    client = open_client(refs=("colours:1", "colours:2"), tokens=tokens)
    client.headers["Authorization"] = "Bearer a-secret-token"
    for version in ("1", "2"):
        client.post("/v1/segment", content=encoded(picture()), params={"version": version})
    client.post("/v2/repository/models/colours/unload", json={"parameters": {"version": "2"}})
    end = time.monotonic() + 10
    while 'class_pixel_ratio{class="red",model="colours",version="2"}' in (text := client.get("/metrics").text):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    assert 'cilseg_queue_length{model="colours",version="1"}' in text
    assert 'cilseg_queue_length{model="colours",version="2"}' not in text
    assert 'cilseg_image_total{model="colours",version="2"} 1.0' in text


def test_paths_do_not_become_labels(client: TestClient) -> None:
    for number in range(20):
        client.get(f"/v2/models/made-up-{number}")
    routes = {dict(labels).get("route") for name, labels in read(client) if name == "cilseg_request_total"}
    assert not [r for r in routes if r and "made-up" in r]


def test_the_dashboard_asks_for_metrics_that_exist(open_client: Any) -> None:
    client = open_client(refs=("colours:2",))
    client.post("/v1/segment", content=encoded(picture()))
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    assert len(expressions) > 10
    asked = {name for e in expressions for name in re.findall(r"cilseg_[a-z_]+", e)}
    assert asked
    for name in asked:
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in families or name in families, name
    used = {label for e in expressions for label in re.findall(r"[{,]([a-z]+)=", e)} - {"job"}
    known = {label for f in families.values() for s in f.samples for label in s.labels}
    assert used <= known
