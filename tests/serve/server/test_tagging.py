"""Images to tag and tag lists to save, as the page uses them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_world import encoded, picture
from starlette.testclient import TestClient

from cilseg.data.taglist import load_tag_list
from cilseg.registry import Registry


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "night").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("a.png", "b.jpg", "night/c.png", ".hidden/d.png"):
        (folder / name).write_bytes(encoded(picture(60, 90), "JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "notes.txt").write_text("no image")
    (folder / "fake.png").write_text("no image either")
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.fixture
def client(open_client: Any, photos: Path) -> TestClient:
    return open_client(image_roots=(("photos", photos),))


def document(**changes: Any) -> dict[str, Any]:
    return {
        "image_root": "photos",
        "classes": [{"name": "cow", "color": "#88aa22"}],
        "images": [
            {"file": "a.png", "present": ["cow"]},
            {"file": "night/c.png", "present": [], "absent": ["cow"]},
        ],
        **changes,
    }


def test_images_page_by_page(client: TestClient) -> None:
    assert client.get("/v1/images").json() == [{"name": "photos"}]
    first = client.get("/v1/images/photos", params={"limit": 2}).json()
    assert [i["file"] for i in first["images"]] == ["a.png", "b.jpg"]
    assert first["total"] == 5
    rest = client.get("/v1/images/photos", params={"limit": 9, "after": first["next"]}).json()
    assert [i["file"] for i in rest["images"]] == ["fake.png", "link.png", "night/c.png"]
    assert rest["next"] is None


def test_an_image_as_it_is_and_shrunk(client: TestClient) -> None:
    shown = client.get("/v1/images/photos/night/c.png")
    assert shown.headers["content-type"] == "image/jpeg"
    assert np.array(Image.open(io.BytesIO(shown.content))).shape == (60, 90, 3)
    small = client.get("/v1/images/photos/a.png", params={"max_side": 30})
    assert Image.open(io.BytesIO(small.content)).size == (30, 20)


@pytest.mark.parametrize(
    ("path", "codes"),
    [
        ("/v1/images/photos/link.png", {403}),
        ("/v1/images/photos/..%2Fsecret.png", {403, 404}),
        ("/v1/images/photos/%2e%2e/secret.png", {403, 404}),
        ("/v1/images/photos//etc/passwd", {403, 404}),
        ("/v1/images/photos/notes.txt", {404}),
        ("/v1/images/photos/night", {404}),
        ("/v1/images/photos/none.png", {404}),
        ("/v1/images/photos/a%00.png", {400}),
        ("/v1/images/photos/fake.png", {422}),
        ("/v1/images/fotos", {404}),
        ("/v1/images/..", {404}),
        ("/v1/images/photos?limit=0", {422}),
        ("/v1/images/photos?tags=nothing", {404}),
    ],
)
def test_nothing_outside_is_shown(client: TestClient, path: str, codes: set[int]) -> None:
    answer = client.get(path)
    assert answer.status_code in codes, answer.text
    assert list(answer.json()) == ["error"]


def test_a_saved_list_is_one_that_update_reads(client: TestClient, registry: Registry, photos: Path) -> None:
    saved = client.put("/v1/tags/cows", json=document())
    assert saved.status_code == 200, saved.text
    assert saved.json()["images"] == 2
    class_set = registry.resolve("colours:1").manifest.class_set
    tag_list = load_tag_list(registry.root / "serve" / "tags" / "cows.json", class_set=class_set)
    assert tag_list.new_names == ("cow",)
    assert [i.file for i in tag_list.images] == [photos / "a.png", photos / "night" / "c.png"]
    read = client.get("/v1/tags/cows")
    assert read.json()["image_root"] == "photos"
    assert str(photos) not in read.text
    assert client.get("/v1/tags").json() == [{"name": "cows", "etag": saved.json()["etag"]}]
    rest = client.get("/v1/images/photos", params={"tags": "cows", "untagged": True}).json()
    assert [i["file"] for i in rest["images"]] == ["b.jpg", "fake.png", "link.png"]
    assert rest["tagged"] == 2
    both = client.get("/v1/images/photos", params={"tags": "cows"}).json()
    assert [i["tagged"] for i in both["images"]] == [True, False, False, False, True]


def test_two_people_do_not_overwrite_each_other(client: TestClient) -> None:
    client.put("/v1/tags/cows", json=document())
    etag = client.get("/v1/tags/cows").headers["etag"]
    changed = document(untagged="unknown")
    assert client.put("/v1/tags/cows", json=changed, headers={"If-Match": etag}).status_code == 200
    late = client.put("/v1/tags/cows", json=document(), headers={"If-Match": etag})
    assert late.status_code == 409
    assert "saved by somebody else" in late.json()["error"]
    assert client.get("/v1/tags/cows").json()["untagged"] == "unknown"


@pytest.mark.parametrize(
    ("name", "body", "code", "message"),
    [
        ("cows", document(image_root="/etc"), 403, "not below an allowed folder"),
        ("cows", document(image_root="photos/../.."), 403, "not below an allowed folder"),
        ("cows", document(images=[{"file": "../secret.png"}]), 422, "leads out of the folder"),
        ("cows", document(images=[{"file": "link.png"}]), 422, "leads out of the folder"),
        ("cows", document(images=[{"file": "none.png"}]), 422, "no file 'none.png'"),
        ("cows", document(images=[{"file": "a.png", "present": "cow"}]), 422, "images.0.present"),
        ("cows", document(classes=[{"name": "cow", "color": "green"}]), 422, "classes.0.color"),
        ("cows", document(surprise=1), 422, "surprise"),
        ("..", document(), 404, ""),
        ("a b", document(), 400, "Tag list name"),
        ("x" * 65, document(), 400, "Tag list name"),
    ],
)
def test_bad_lists(client: TestClient, name: str, body: dict[str, Any], code: int, message: str) -> None:
    answer = client.put(f"/v1/tags/{name}", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code in (code, 405), answer.text
    assert message in answer.json()["error"]
    assert client.get("/v1/tags").json() == []
