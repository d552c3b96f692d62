"""The gate's report: self-contained, complete, escaped, and readable without colours."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilseg.classes import ClassSet
from cilseg.evaluate.gate import GatePolicy, GateResult, judge
from cilseg.evaluate.report import render_html, write_report
from cilseg.evaluate.run import Comparison, Evaluation, WorstImage

CLASSES = ClassSet.base(["cat", "<dog>"]).extend(["cow"], step=1)


class Page(HTMLParser):
    """Collects tags with attributes, and the text outside style elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "rect", "circle", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def judged(lost: float, n_images: int = 60) -> tuple[GateResult, Comparison]:
    """A candidate that calls the share ``lost`` of each dog a cow, and its two worst images."""
    parent = np.zeros((n_images, 4, 4), dtype=np.int64)
    parent[:, 0, 0], parent[:, 1, 1], parent[:, 2, 2], parent[:, 3, 0] = 5000, 900, 1000, 400
    candidate = parent.copy()
    jitter = np.random.default_rng(0).integers(-9, 10, n_images)
    moved = (1000 * lost + jitter * (lost > 0)).astype(np.int64)
    candidate[:, 2, 2] -= moved
    candidate[:, 2, 3] += moved
    candidate[:, 3, 3], candidate[:, 3, 0] = 300, 100
    ids = tuple(f"image & {i}" for i in range(n_images))
    rng = np.random.default_rng(1)
    worst = tuple(
        WorstImage(
            ids[i],
            0.2,
            rng.integers(0, 255, (30, 40, 3), dtype=np.uint8),
            *(np.full((30, 40), value, dtype=np.uint8) for value in (2, 2, 3)),
        )
        for i in range(2)
    )
    flips = candidate[:, 2, 3]
    comparison = Comparison(
        Evaluation(CLASSES, ids, parent), Evaluation(CLASSES, ids, candidate), flips, flips, parent.sum((1, 2)), worst
    )
    policy = GatePolicy(resamples=300)
    result = judge(parent, candidate, class_set=CLASSES, old=["cat", "<dog>"], policy=policy, flips=comparison.flips)
    return result, comparison


@pytest.fixture(scope="module")
def rejected() -> tuple[GateResult, str]:
    result, comparison = judged(0.2)
    html = render_html(
        result,
        class_set=CLASSES,
        comparison=comparison,
        title="animals:4 against animals:3",
        lineage={"parent": "animals:3", "tag list": "<new>.json"},
        command="cilseg validate animals:4 --against animals:3",
    )
    return result, html


def test_nothing_is_fetched_from_elsewhere(rejected: tuple[GateResult, str]) -> None:
    _, html = rejected
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe", re.sub(r'src="data:[^"]*"', "", html))
    sources = [attrs["src"] for tag, attrs in Page(html).tags if "src" in attrs]
    assert sources
    assert all(source is not None and source.startswith("data:image/") for source in sources)


def test_rejection_reads_as_one(rejected: tuple[GateResult, str]) -> None:
    result, html = rejected
    page = Page(html)
    assert result.verdict == "REJECT"
    assert "REJECT" in page.text
    assert "<dog> got worse; the loss is estimated at more than 3.0 points of IoU." in page.text
    assert result.error_statement in page.text
    assert all(line in page.text for line in (*result.reasons, *result.advice))
    assert "✗ dropped" in page.text
    assert "✓ kept" in page.text
    assert "cilseg validate animals:4 --against animals:3" in page.text
    assert "animals:3" in page.text


def test_names_are_escaped(rejected: tuple[GateResult, str]) -> None:
    _, html = rejected
    assert "<dog>" not in html
    assert "&lt;dog&gt;" in html
    assert "&lt;new&gt;.json" in html
    assert "image &amp; 0" in html


def test_markup_is_balanced_and_accessible(rejected: tuple[GateResult, str]) -> None:
    page = Page(rejected[1])
    assert page.open == []
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    assert "prefers-color-scheme:dark" in rejected[1]
    assert "@media print" in rejected[1]


def test_worst_images_show_image_truth_before_after(rejected: tuple[GateResult, str]) -> None:
    page = Page(rejected[1])
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    names = ("image", "truth", "before", "after")
    assert [a["alt"] for a in images] == [f"image & {i}: {n}" for i in range(2) for n in names]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode((a["src"] or "").split(",")[1]))), dtype=np.float64)
        for a in images[:4]
    ]
    assert all(p.shape == (30, 40, 3) for p in pictures)
    plain, truth, before, after = (p.mean(axis=(0, 1)) for p in pictures)
    toward = CLASSES.palette[2] - plain
    assert np.abs(truth - (plain + 0.55 * toward)).max() < 6
    assert np.abs(truth - before).max() < 1
    assert np.abs(truth - after).max() > 20


def test_interval_plot_stays_inside_its_box(rejected: tuple[GateResult, str]) -> None:
    for tag, attrs in Page(rejected[1]).tags:
        if tag in ("line", "circle"):
            places = [float(attrs[key] or "nan") for key in ("x1", "x2", "cx") if key in attrs]
            assert all(0 <= x <= 220 for x in places)


def test_hold_says_what_would_settle_it() -> None:
    result, comparison = judged(0.0, n_images=8)
    page = Page(render_html(result, class_set=CLASSES, comparison=comparison))
    assert "The gate set cannot decide 2 of 2 old classes (cat and <dog>)." in page.text
    assert "What would settle it" in page.text
    assert "cat: annotate at least 12 more images that show it (now 8)." in page.text


def test_promotion_and_missing_gate_set_render() -> None:
    result, _ = judged(0.0)
    page = Page(render_html(result, class_set=CLASSES))
    assert "No old class lost 3.0 points of IoU or more." in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]
    nothing = judge(None, None, class_set=CLASSES, old=["cat", "<dog>"])
    assert "because there is no gate set" in Page(render_html(nothing, class_set=CLASSES)).text


def test_class_without_truth_renders() -> None:
    result, comparison = judged(0.0)
    parent, candidate = comparison.parent.confusions.copy(), comparison.candidate.confusions.copy()
    parent[:, 2] = candidate[:, 2] = 0
    result = judge(parent, candidate, class_set=CLASSES, old=["cat", "<dog>"], policy=GatePolicy(resamples=200))
    text = Page(render_html(result, class_set=CLASSES)).text
    assert "no annotated image shows it" in text
    assert "nan" not in text.lower()


def test_files(tmp_path: Path) -> None:
    result, comparison = judged(0.2)
    write_report(
        result,
        path_html=tmp_path / "gate.html",
        path_json=tmp_path / "gate.json",
        class_set=CLASSES,
        comparison=comparison,
        lineage={"parent": "animals:3"},
        command="cilseg validate animals:4",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gate.html", "gate.json"]
    payload = json.loads((tmp_path / "gate.json").read_text())
    assert payload["verdict"] == "REJECT"
    assert payload["lineage"] == {"parent": "animals:3"}
    assert payload["command"] == "cilseg validate animals:4"
    assert payload["flips"]["negative"] == int(comparison.negative_flips.sum())
    assert [w["id"] for w in payload["worst_images"]] == ["image & 0", "image & 1"]
    assert (tmp_path / "gate.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
