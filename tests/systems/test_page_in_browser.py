"""The page of ``cilseg serve`` in a real browser, through a real server process."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from axe_core_python.base import AXE_SCRIPT
from browser_session import Tab, tab
from PIL import Image

from cilseg.bundle import write_manifest
from cilseg.data.taglist import load_tag_list
from cilseg.data.tags import check_trainable
from cilseg.registry import Registry
from tests.serve.server.server_world import decoded, encoded, make_model, running, two_versions
from tests.serve.tiny_model import CLASSES, make_manifest

pytestmark = pytest.mark.systems
LOOK, TAG, PROMOTE = "a-token-to-look", "a-token-to-tag", "a-token-to-promote"
BOTH = f"infer+tag={TAG}\npromote+infer={PROMOTE}\ninfer={LOOK}"
PALETTE = CLASSES.palette
VIEWS = ("segment", "registry", "tag")
GATE_PAGE = b"<!doctype html><html lang='en'><title>gate</title><h1>HOLD</h1></html>"


def stripes(height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """A dark rim around a red, a green and a blue stripe."""
    image = np.zeros((height, width, 3), np.uint8)
    third = (width - 4) // 3
    for index, color in enumerate([(200, 20, 10), (10, 210, 30), (5, 15, 220)]):
        image[4:-4, 2 + index * third : 2 + (index + 1) * third] = color
    return image


def make_photos(parent: Path, count: int = 5) -> Path:
    folder = parent / "photos"
    (folder / "night").mkdir(parents=True)
    for number in range(count):
        name = f"night/{number}.png" if number == count - 1 else f"{number}.png"
        (folder / name).write_bytes(encoded(np.roll(stripes(), 3 * number, axis=1)))
    return folder


def add_candidate(registry: Registry, folder: Path, verdict: str = "HOLD") -> None:
    """Register ``colours:3``, trained from ``colours:1``, with a gate report."""
    bundle = folder / "candidate"
    bundle.mkdir()
    (bundle / "checkpoint.safetensors").write_bytes(b"x")
    parent = registry.resolve("colours:1").digest
    write_manifest(bundle, make_manifest().model_copy(update={"seed": 9, "parent": parent}))
    version = registry.register("colours", bundle)
    registry.attach(version, "model.onnx", make_model((1, 0, 2)), kind="onnx", metadata={"parity": {"passed": True}})
    attach_gate(registry, "colours:3", verdict=verdict, reference_digest=parent)


def attach_gate(registry: Registry, ref: str, **fields: Any) -> None:
    version = registry.resolve(ref)
    registry.attach(version, "gate.json", json.dumps(fields).encode(), kind="gate")
    registry.attach(version, "gate.html", GATE_PAGE, kind="gate")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("browser")) as opened:
        opened.look()
        yield opened


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return two_versions(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


@pytest.fixture
def serve(page: Tab, registry: Registry, photos: Path) -> Iterator[Callable[..., str]]:
    """Start a server and open its page at a part; afterwards check that nothing was asked of anybody else."""
    with contextlib.ExitStack() as stack:
        hosts: list[str] = []

        def start(view: str, *arguments: object, env: dict[str, str] | None = None) -> str:
            server = stack.enter_context(running(registry.root, *arguments, "--images", f"photos={photos}", env=env))
            hosts.append(f"127.0.0.1:{server.port}")
            page.look()
            page.requests.clear()
            page.complaints.clear()
            page.open(f"{server.url}/#{view}")
            page.wait("document.querySelector('footer').innerText.includes('cilseg ')")
            return server.url

        yield start
        asked = {urlsplit(url).netloc for url in page.requests if url.startswith(("http:", "https:", "ws:"))}
        assert asked == set(hosts)
        page.run("window.onbeforeunload = null")
        page.open("about:blank")


def canvas(page: Tab, name: str) -> npt.NDArray[np.uint8]:
    """The pixels of a canvas, ``(H, W, 3)``."""
    data = page.run(f"document.querySelector('#{name}').toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def segment(page: Tab, path: Path) -> None:
    page.wait("document.querySelector('#segment-model').value")
    page.give_file("#file", path)
    page.wait("!document.querySelector('#segment-result').hidden || document.querySelector('#segment-status.error')")


def shares(page: Tab) -> dict[str, float]:
    script = (
        "[...document.querySelectorAll('#segment-classes tbody tr')]"
        ".map(r => [r.querySelector('input').dataset.class, r.querySelector('td').dataset.share])"
    )
    return {name: float(share) for name, share in page.run(script)}


def test_the_mask_is_on_the_canvas_and_coverage_is_the_servers(page: Tab, serve: Any, photos: Path) -> None:
    url = serve("segment", "colours")
    segment(page, photos / "0.png")
    data = (photos / "0.png").read_bytes()
    answer = httpx.post(f"{url}/v1/segment?format=json", content=data).json()
    mask = decoded(httpx.post(f"{url}/v1/segment?format=mask", content=data).content)
    assert shares(page) == answer["coverage"]
    assert len(np.unique(mask)) == 4
    page.choose("#opacity", "100")
    page.click("input[data-class=background]")
    assert np.array_equal(canvas(page, "segment-canvas"), PALETTE[mask])
    page.click("input[data-class=green]")
    expected = np.where((mask == 2)[..., None], stripes(), PALETTE[mask])
    assert np.array_equal(canvas(page, "segment-canvas"), expected), "a hidden class shows the image"
    page.choose("#opacity", "0")
    assert np.array_equal(canvas(page, "segment-canvas"), stripes())
    label = page.run("document.querySelector('#segment-canvas').getAttribute('aria-label')")
    assert label.startswith("Version 1 sees 3 classes:")
    assert "the network ran" in page.text("#segment-time")
    assert page.complaints == []


def test_two_versions_side_by_side(page: Tab, serve: Any, photos: Path) -> None:
    url = serve("segment", "colours:1", "colours:2")
    segment(page, photos / "0.png")
    page.choose("#opacity", "100")
    page.click("#all-classes")
    page.choose("#segment-version", "1")
    page.choose("#segment-other", "2")
    page.wait("!document.querySelector('#split-row').hidden")
    data = (photos / "0.png").read_bytes()
    one, two = (
        PALETTE[decoded(httpx.post(f"{url}/v1/segment?format=mask&version={v}", content=data).content)] for v in (1, 2)
    )
    assert (one != two).any()
    for percent, middle in ((50, 32), (25, 16)):
        page.choose("#split", str(percent))
        seen = canvas(page, "segment-canvas")
        assert np.array_equal(seen[:, : middle - 2], one[:, : middle - 2])
        assert np.array_equal(seen[:, middle + 2 :], two[:, middle + 2 :])
        assert (seen[:, middle] == 255).all(), "the line between them"
    assert page.complaints == []


def test_a_file_that_is_no_image_is_refused_in_words(page: Tab, serve: Any, tmp_path: Path) -> None:
    serve("segment", "colours")
    (tmp_path / "no.png").write_bytes(b"this is no image")
    segment(page, tmp_path / "no.png")
    said = page.text("#segment-status")
    assert "image" in said
    assert said.endswith(".")
    assert page.run("document.querySelector('#segment-status').getAttribute('role')") == "alert"


def open_list(page: Tab, name: str = "cows") -> None:
    page.wait("document.querySelector('#tag-root').value && document.querySelector('#tag-model').value")
    page.fill("#tag-list", name)
    page.click("#tag-open")
    page.wait("!document.querySelector('#tag-work').hidden && document.querySelector('#tag-classes fieldset')")
    page.wait("/ of /.test(document.querySelector('#tag-caption').innerText)")


def add_class(page: Tab, name: str) -> None:
    page.fill("#tag-new", name)
    page.press("Enter")
    page.wait(f"document.querySelector('#tag-classes [data-class={name}]')")
    page.run("document.activeElement.blur()")


def shown(page: Tab) -> str:
    return page.text("#tag-caption").partition(" ")[0]


def step(page: Tab, key: str, file: str) -> None:
    page.press(key)
    page.wait(f"document.querySelector('#tag-caption').innerText.startsWith({json.dumps(file)})")


def saved(registry: Registry, name: str = "cows") -> dict[str, Any]:
    return dict(json.loads((registry.root / "serve" / "tags" / f"{name}.json").read_text()))


def test_keys_tag_images_and_the_list_is_one_that_update_reads(page: Tab, serve: Any, registry: Registry) -> None:
    url = serve("tag", "colours")
    open_list(page)
    assert shown(page) == "0.png"
    add_class(page, "cow")
    assert page.text("#tag-advice") == (
        "Tag images that show cow: none is tagged present.\nOne more image without cow (tagged absent) is needed."
    )
    page.press("1")  # cow present
    page.press("2", "2")  # red absent
    step(page, "n", "1.png")
    page.press("1")
    step(page, "n", "2.png")
    page.press("1", "1")  # cow absent
    page.press("3")  # green present, then taken back
    page.press("u")
    page.press("4", "4", "4")  # blue: all the way round to unknown
    step(page, "n", "3.png")
    page.press("1")
    page.press("0")  # all others absent
    step(page, "p", "2.png")
    assert page.text("#tag-advice") == "About 2 more images without cow (tagged absent) would help."
    page.press("s")
    page.wait("document.querySelector('#tag-saved').innerText === 'Saved.'")
    assert "cows was saved: 4 images" in page.text("#tag-status")
    tags = load_tag_list(registry.root / "serve" / "tags" / "cows.json", class_set=CLASSES)
    check_trainable(tags)
    assert tags.new_names == ("cow",)
    states = {
        Path(image.file).name: [tags.state(image, name) for name in ("cow", "red", "green", "blue")]
        for image in tags.images
    }
    assert states == {
        "0.png": [1, 0, -1, -1],
        "1.png": [1, -1, -1, -1],
        "2.png": [0, -1, -1, -1],
        "3.png": [1, 0, 0, 0],
    }
    page.open("about:blank")  # a new address after the sign alone would not load the page again
    page.open(f"{url}/#tag")
    open_list(page)
    assert shown(page) == "night/4.png", "tagged images are left out"
    assert [r["present"] for r in saved(registry)["images"]] == [["cow"], ["cow"], [], ["cow"]]
    assert page.complaints == []


def test_the_work_of_somebody_else_is_not_overwritten(page: Tab, serve: Any, registry: Registry) -> None:
    url = serve("tag", "colours")
    open_list(page)
    add_class(page, "cow")
    page.press("1", "s")
    page.wait("document.querySelector('#tag-saved').innerText === 'Saved.'")
    other = {"image_root": "photos", "classes": [{"name": "cow"}], "images": [{"file": "1.png", "present": ["cow"]}]}
    assert httpx.put(f"{url}/v1/tags/cows", json=other).status_code == 200
    page.press("1", "s")
    page.wait("document.querySelector('#tag-status.error')")
    assert "saved by somebody else meanwhile" in page.text("#tag-status")
    assert [row["file"] for row in saved(registry)["images"]] == ["1.png"]
    page.run("window.addEventListener('beforeunload', e => e.stopImmediatePropagation(), true)")


def test_letters_typed_into_a_field_are_no_commands(page: Tab, serve: Any) -> None:
    serve("tag", "colours")
    open_list(page)
    before = shown(page)
    page.run("document.querySelector('#tag-new').focus()")
    page.press("n", "1", "0")
    assert page.run("document.querySelector('#tag-new').value") == "n10"
    assert shown(page) == before
    assert page.text("#tag-saved") == "Saved."


def test_an_update_from_the_page(page: Tab, serve: Any, registry: Registry, stand_in: dict[str, str]) -> None:
    attach_gate(registry, "colours:2", verdict="HOLD", advice=["Annotate 12 more images."], to_tag=["Images of cows."])
    serve("tag", "colours", env=stand_in)
    open_list(page)
    add_class(page, "cow")
    page.press("1")
    step(page, "n", "1.png")
    page.press("1", "1")
    page.click("#tag-start")
    page.wait("document.querySelector('#watch-state').innerText.includes('It is done')", limit_s=60)
    assert page.text("#watch-state") == "It is done: colours:2. The gate says HOLD: as it is"
    page.wait("document.querySelector('#watch-log').innerText.includes('step 3')")
    page.wait("document.querySelectorAll('#watch-advice li').length")
    assert page.text("#watch-advice") == "Annotate 12 more images.\nImages of cows."
    href = page.run("document.querySelector('#watch-links a').href")
    assert httpx.get(href).content == GATE_PAGE
    (job,) = (registry.root / "serve" / "updates").glob("*/tags.json")
    assert json.loads(job.read_text())["classes"] == [{"name": "cow"}]
    assert page.complaints == []


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """What makes a server start a stand-in for the training (see tests/serve/server/test_updates.py)."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    script = Path(__file__).parent.parent / "serve" / "server" / "stand_in_update.py"
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'serve' in sys.argv:\n"
        "    from cilseg_serve.server import settings\n"
        "    was = settings.ServerSettings.__init__.__defaults__\n"
        "    settings.ServerSettings.__init__.__defaults__ = tuple(\n"
        f"        (sys.executable, {str(script)!r}) if isinstance(d, tuple) and 'update' in d else d for d in was\n"
        "    )\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def give_token(page: Tab, secret: str) -> None:
    page.click("#token-button")
    page.fill("#token-input", secret)
    page.click("#token-form button[value=keep]")


def move(page: Tab, button: str, *, secret: str | None = None, reason: str = "it is better") -> None:
    page.click(f"[aria-label='{button}']")
    page.wait("document.querySelector('#move-dialog').open")
    page.fill("#move-reason", reason)
    if secret is not None:
        again(page, secret)
    else:
        page.click("#move-go")


def again(page: Tab, secret: str) -> None:
    page.run("document.querySelector('#move-token-row').hidden = false")
    page.fill("#move-token", secret)
    page.click("#move-go")


def refused(page: Tab) -> str:
    page.wait("document.querySelector('#move-status.error')")
    return page.text("#move-status")


def moved(page: Tab, said: str) -> None:
    """Wait until the page says so."""
    page.wait("!document.querySelector('#move-dialog').open")
    page.wait(f"document.querySelector('#registry-status').innerText === {json.dumps(said)}")


def where(url: str) -> int:
    answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {LOOK}"})
    return int(answer.json()[0]["default"])


def test_promote_and_roll_back_with_tokens(page: Tab, serve: Any, registry: Registry, tmp_path: Path) -> None:
    add_candidate(registry, tmp_path)
    url = serve("registry", "colours", env={"CILSEG_TOKENS": BOTH})
    page.wait("document.querySelector('#registry-status.error')")
    said = page.text("#registry-status")
    assert said == "This needs a token with the role infer, got no bearer token. Give one under “Token”."
    give_token(page, LOOK)
    page.wait("document.querySelectorAll('#registry-models .card').length === 3")
    assert "Gate: HOLD" in page.text("[data-ref='colours:3']")
    move(page, "Promote colours:2", secret="not-the-secret")
    assert "needs a token with the role promote, got an unknown token" in refused(page)
    assert where(url) == 1
    page.click("#move-cancel")
    move(page, "Promote colours:2")
    assert "The token has the roles infer, this needs promote" in refused(page)
    assert page.run("document.activeElement.id") == "move-token", "the field that is needed has the focus"
    again(page, PROMOTE)
    moved(page, "production moved from version 1 to version 2.")
    assert where(url) == 2
    assert "production" in page.text("[data-ref='colours:2']")
    move(page, "Promote colours:3", secret=PROMOTE)
    assert "The gate said HOLD" in refused(page)
    page.click("#move-cancel")
    move(page, "Roll colours back", secret=PROMOTE, reason="worse at night")
    moved(page, "production moved from version 2 to version 1.")
    assert where(url) == 1
    page.click("#registry-models summary")
    rows = page.text("#registry-models table")
    assert "worse at night" in rows
    assert "promote: 1 → 2" in rows
    event = registry.history("colours", alias="production")[-1]
    assert (event.why, event.to_number) == ("worse at night", 1)


def test_an_alias_that_moved_meanwhile_is_not_moved_again(page: Tab, serve: Any, registry: Registry) -> None:
    url = serve("registry", "colours", env={"CILSEG_TOKENS": BOTH})
    give_token(page, PROMOTE)
    page.wait("document.querySelectorAll('#registry-models .card').length === 2")
    registry.promote("colours:2")
    move(page, "Promote colours:1")
    assert "2" in refused(page)
    page.wait("true")
    assert registry.resolve("colours@production").number == 2
    page.click("#move-cancel")
    assert where(url) in (1, 2)


def test_the_token_stays_in_the_tab_and_out_of_addresses(
    page: Tab, serve: Any, registry: Registry, tmp_path: Path
) -> None:
    add_candidate(registry, tmp_path)
    url = serve("registry", "colours", env={"CILSEG_TOKENS": BOTH})
    give_token(page, LOOK)
    page.wait("document.querySelectorAll('#registry-models .card').length === 3")
    page.click("[aria-label='Gate report of colours:3']")
    page.wait("document.querySelector('#report-dialog').open")
    assert page.run("document.querySelector('#report-frame').srcdoc").encode() == GATE_PAGE
    page.click("#report-close")
    assert LOOK not in page.run("document.documentElement.outerHTML")
    assert not [address for address in page.requests if LOOK in address]
    assert page.run("[localStorage.length, document.cookie]") == [0, ""]
    page.open(f"{url}/#segment")
    page.wait("document.querySelector('#segment-model').value === 'colours'")


def busy_views(page: Tab, serve: Any, registry: Registry, photos: Path, tmp_path: Path) -> Iterator[str]:
    """Show each part of the page with something in it."""
    add_candidate(registry, tmp_path)
    url = serve("segment", "colours:1", "colours:2")
    segment(page, photos / "0.png")
    page.choose("#segment-other", "2")
    page.wait("!document.querySelector('#split-row').hidden")
    yield "segment"
    page.run("location.hash = '#registry'")
    page.wait("document.querySelectorAll('#registry-models .card').length === 3")
    page.click("#registry-models summary")
    yield "registry"
    page.run("location.hash = '#tag'")
    open_list(page)
    add_class(page, "cow")
    page.press("1")
    yield "tag"
    page.press("u", "u")
    assert url
    page.run("window.addEventListener('beforeunload', e => e.stopImmediatePropagation(), true)")


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_inaccessible(
    page: Tab, serve: Any, registry: Registry, photos: Path, tmp_path: Path, dark: bool
) -> None:
    for view in busy_views(page, serve, registry, photos, tmp_path):
        page.look(dark=dark)
        page.run(AXE_SCRIPT + "; 0")
        found = page.run("axe.run().then(r => r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)]))")
        assert found == [], view
        for node in page.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if role in ("button", "link", "checkbox", "radio", "slider", "textbox", "combobox", "image", "group"):
                assert node["name"]["value"].strip() or node.get("ignored"), (view, node)


def test_the_check_of_accessibility_sees_faults(page: Tab, serve: Any) -> None:
    serve("segment", "colours")
    page.run("document.querySelector('main').append(document.createElement('button')); 0")
    page.run(AXE_SCRIPT + "; 0")
    assert "button-name" in page.run("axe.run().then(r => r.violations.map(v => v.id))")


def settle(page: Tab) -> None:
    """Wait until nothing is drawn any more: rows are made anew when an answer comes."""
    before = ""
    while (now := page.run("document.body.innerHTML")) != before:
        before = now
        time.sleep(0.5)


def test_the_tab_key_reaches_every_control(
    page: Tab, serve: Any, registry: Registry, photos: Path, tmp_path: Path
) -> None:
    wanted = """[...document.querySelectorAll('a, button, input, select, textarea, summary, [tabindex="0"]')]
        .filter(e => e.checkVisibility() && !e.disabled)"""
    for view in busy_views(page, serve, registry, photos, tmp_path):
        settle(page)
        count = page.run(f"(window.controls = {wanted}).length")
        page.run("window.reached = new Set(); document.activeElement.blur(); 0")
        page.run("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex'); 0")
        for _ in range(count + 3):
            page.press("Tab")
            page.run("reached.add(document.activeElement); 0")
        # of a group of radio buttons, Tab reaches the one that is chosen
        missed = page.run(
            "controls.filter(e => !reached.has(e) && !(e.type === 'radio' && "
            "[...reached].some(r => r.name === e.name && r.type === 'radio'))).map(e => e.outerHTML)"
        )
        assert missed == [], view
        order = page.run("[...reached].map(e => controls.indexOf(e)).filter(i => i >= 0)")
        start = order.index(min(order))
        assert order[start:] + order[:start] == sorted(order), "in the order of the page"


def test_a_phone_shows_it_without_scrolling_sideways(
    page: Tab, serve: Any, registry: Registry, photos: Path, tmp_path: Path
) -> None:
    for view in busy_views(page, serve, registry, photos, tmp_path):
        page.look(width=360, height=740, phone=True)
        assert page.run("document.documentElement.scrollWidth") <= 360, view
        page.look()
