"""The gate's report in a real browser: painted in light and dark, on a phone and on paper, and fetching nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from PIL import Image

from cilseg.classes import ClassSet
from cilseg.evaluate.average_precision import AveragePrecision
from cilseg.evaluate.gate import GateExtras, GatePolicy, judge
from cilseg.evaluate.regions import RegionFlips
from cilseg.evaluate.report import render_html
from cilseg.evaluate.run import Comparison, Evaluation, WorstImage

pytestmark = pytest.mark.systems
CLASSES = ClassSet.base(["cat", "dog"]).extend(["cow", "sheep"], step=1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section: a third of each dog is called cow."""
    rng = np.random.default_rng(0)
    parent = np.zeros((60, 5, 5), dtype=np.int64)
    parent[:, 0, 0], parent[:, 1, 1], parent[:, 2, 2], parent[:, 3, 0] = 5000, 900, 1000, 400
    candidate = parent.copy()
    moved = rng.integers(250, 350, 60)
    candidate[:, 2, 2] -= moved
    candidate[:, 2, 3] += moved
    candidate[:, 3, 3], candidate[:, 3, 0] = 300, 100
    worst = tuple(
        WorstImage(
            f"image {i}",
            0.2,
            rng.integers(0, 255, (120, 160, 3), dtype=np.uint8),
            *(np.full((120, 160), value, dtype=np.uint8) for value in (2, 2, 3)),
        )
        for i in range(10)
    )
    ids = tuple(str(i) for i in range(60))
    flips = candidate[:, 2, 3]
    comparison = Comparison(
        Evaluation(CLASSES, ids, parent), Evaluation(CLASSES, ids, candidate), flips, flips, parent.sum((1, 2)), worst
    )
    extras = GateExtras(RegionFlips(12, 3, 120), (4.0, 7.5), (AveragePrecision("sheep", 70.0, 60.0, 80.0, 30, 60),), 2)
    result = judge(
        parent,
        candidate,
        class_set=CLASSES,
        old=["cat", "dog"],
        policy=GatePolicy(resamples=300),
        flips=comparison.flips,
        extras=extras,
    )
    assert result.verdict == "REJECT"
    html = render_html(
        result,
        class_set=CLASSES,
        comparison=comparison,
        title="animals:2 against animals:1",
        lineage={"parent": "animals:1"},
        command="cilseg validate animals:2 --against animals:1",
    )
    path = tmp_path_factory.mktemp("report") / "gate.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)


def test_nothing_is_fetched_or_logged_and_the_verdict_is_in_the_dom(browser: Browser, page: Path) -> None:
    visit = browser.visit(page)
    assert visit.requests == []
    assert visit.console == []
    text = visit.dom
    for expected in (
        "<h1>REJECT</h1>",
        "Dog got worse; the loss is estimated at more than 3.0 points of IoU.",
        "What to tag next",
        "Old pixels that new classes take",
        "New classes by their tags",
        "−12 / +3",
        "Candidate number 2 of this lineage",
        "cilseg validate animals:2 --against animals:1",
    ):
        assert expected in text, expected
    assert text.count("<img ") == 40


def test_a_page_that_fetches_and_fails_is_seen(browser: Browser, tmp_path: Path) -> None:
    """The check above would notice: this page asks a port where nobody listens, and raises."""
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing.here</script>')
    visit = browser.visit(page)
    assert visit.requests == ["http://127.0.0.1:9/x.png"]
    assert any("nothing is not defined" in line for line in visit.console)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_painted_in_light_and_dark(browser: Browser, page: Path, dark: bool) -> None:
    picture = pixels(browser.picture(page, width=1200, height=1400, dark=dark))
    assert picture.shape == (1400, 1200, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200, "hardly anything was painted"
    corner = picture[5, 5].mean()
    assert (corner < 60) if dark else (corner > 200)
    header = picture[40:140, 100:1100]
    assert header.max() - header.min() > 120, "the verdict cannot be read"
    wanted = np.array([255, 138, 128] if dark else [179, 38, 30])  # the colour of a REJECT
    assert (np.abs(header - wanted).sum(axis=2) < 30).sum() > 300


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, page: Path) -> None:
    picture = pixels(browser.picture(page, width=500, height=1600))
    margin = picture[:, -8:]
    assert (margin == margin[0, 0]).all(), "something reaches over the right edge"


def test_it_prints(browser: Browser, page: Path) -> None:
    data = browser.pdf(page).read_bytes()
    assert data.startswith(b"%PDF-")
    pages = data.count(b"/Type /Page") - data.count(b"/Type /Pages")
    assert 2 <= pages <= 12
