"""The description of the interface: complete, and without anything from elsewhere."""

from __future__ import annotations

import re

from starlette.testclient import TestClient


def test_every_route_is_described(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    operations = [(m, p, o) for p, methods in document["paths"].items() for m, o in methods.items()]
    assert len(operations) > 30
    for method, path, operation in operations:
        assert operation.get("description"), (method, path)
        assert f"<code>{path}</code>" in page.text, path
    assert not re.search(r"https?://|<script", page.text)
