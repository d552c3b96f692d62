"""Following aliases: no failed request while they move, nothing wrong served, leases that gc respects."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
from server_world import decoded, encoded, expected_mask, make_model, picture, register, running

from cilseg.classes import ClassSet
from cilseg.registry import Registry
from cilseg.registry.collect import collect_garbage

ORDERS = {"colours:1": (0, 1, 2), "colours:2": (2, 1, 0), "colours:3": (1, 0, 2)}


def until(condition: Callable[[], bool], *, what: str, limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_moving_alias_under_load_loses_no_request(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, model=make_model(ORDERS["colours:3"]), seed=3)
    image = picture(64, 64)
    body = encoded(image)
    answers: dict[str, tuple[int, ...]] = {
        ref: tuple(expected_mask(image, order).ravel().tolist()) for ref, order in ORDERS.items()
    }
    seen: list[str] = []
    faults: list[str] = []
    stop = threading.Event()

    def load(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/segment", content=body)
                except httpx.HTTPError as error:
                    faults.append(repr(error))
                    continue
                ref = answer.headers.get("x-cilseg-model", "")
                if answer.status_code != 200:
                    faults.append(answer.text)
                elif tuple(decoded(answer.content).ravel().tolist()) != answers[ref]:
                    faults.append(f"wrong answer by {ref}")
                seen.append(ref)

    with running(registry.root, "colours@production", "--poll", "0.05") as server:
        threads = [threading.Thread(target=load, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            moves = ["colours:2", "colours:3", "colours:1", "colours:2"]
            for ref in moves:
                registry.promote(ref)
                until(lambda ref=ref: bool(seen) and seen[-1] == ref, what=f"{ref} never answered")
            registry.rollback("colours")
            until(lambda: seen[-1] == "colours:1", what="the rollback never took effect")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        held = [json.loads(p.read_text()) for p in (registry.root / "leases").glob("*.json")]
        assert len(held) == 1
        assert {"colours:1", "colours:2"} <= set(held[0]["refs"])
        server.terminate()
        assert server.wait() == 0
    assert faults == []
    assert len(seen) >= 20
    assert not list((registry.root / "leases").glob("*.json"))


def segment(client: Any, **parameters: str) -> Any:
    return client.post("/v1/segment", content=encoded(picture()), params=parameters)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_place(
    registry: Registry, open_client: Any, tmp_path: Path
) -> None:
    register(registry, tmp_path, model=make_model(), seed=3, parity=False)
    client = open_client()
    registry.promote("colours:3")
    until(lambda: 'follow_failed{model="colours"} 1.0' in client.get("/metrics").text, what="the fault is not shown")
    assert segment(client).headers["x-cilseg-model"] == "colours:1"
    registry.promote("colours:2")
    until(lambda: segment(client).headers["x-cilseg-model"] == "colours:2", what="the good one never answered")
    assert 'follow_failed{model="colours"} 0.0' in client.get("/metrics").text


def test_ids_that_change_their_names_are_not_followed_without_consent(
    registry: Registry, open_client: Any, tmp_path: Path
) -> None:
    renamed = ClassSet.base(["red", "green", "violet"])
    register(registry, tmp_path, model=make_model(), seed=3, classes=renamed)
    # `promote` refuses such a move itself; a database changed by an older cilseg would not.
    with mock.patch("cilseg.registry.moves.renamed_ids", return_value=[]):
        client = open_client()
        registry.promote("colours:3")
        until(lambda: 'follow_failed{model="colours"} 1.0' in client.get("/metrics").text, what="it was followed")
    assert segment(client).headers["x-cilseg-model"] == "colours:1"
    registry.promote("colours:1", class_change=True)
    registry.promote("colours:3", class_change=True)
    until(lambda: segment(client).headers["x-cilseg-model"] == "colours:3", what="consent was not heard")


def test_two_aliases_of_one_model(registry: Registry, open_client: Any, tmp_path: Path) -> None:
    register(registry, tmp_path, model=make_model(ORDERS["colours:3"]), seed=3)
    registry.promote("colours:2", alias="candidate")
    client = open_client(refs=("colours@production", "colours@candidate"))
    assert segment(client).headers["x-cilseg-model"] == "colours:1"
    assert np.array_equal(decoded(segment(client, version="2").content), expected_mask(picture(), ORDERS["colours:2"]))
    registry.promote("colours:3", alias="candidate")
    until(lambda: segment(client, version="3").status_code == 200, what="the new candidate was not loaded")
    until(lambda: segment(client, version="2").status_code == 404, what="the old candidate stayed")
    assert segment(client).headers["x-cilseg-model"] == "colours:1"


def test_gc_leaves_alone_what_is_served(registry: Registry, open_client: Any) -> None:
    client = open_client(refs=("colours:2",))
    assert segment(client).headers["x-cilseg-model"] == "colours:2"
    found = {d.ref: d.reasons for d in collect_garbage(registry, keep_days=0).decisions}
    assert any("serve" in reason for reason in found["colours:2"]), found
