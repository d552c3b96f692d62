"""Tables and pages from hand-made cells; published numbers beside ours, never mixed in."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_protocol import CLASSES, tree, write_protocol

from cilseg.bench.config import ProtocolConfig, load_protocol, protocol_names
from cilseg.bench.page import render_page
from cilseg.bench.plan import Cell
from cilseg.bench.published import PublishedRow, published_rows
from cilseg.bench.table import Spread, make_table, markdown, summary


def result(
    method: str, supervision: str, old: float, new: float | None, every: float, **changes: Any
) -> dict[str, Any]:
    iou = {"background": 90.0, CLASSES[0]: old, CLASSES[1]: old, **({} if new is None else {CLASSES[2]: new})}
    means = {
        "A": {"old": old, "new": new, "all": every - 1},
        "B": {"old": old + 2, "new": new, "all": every},
        "C": {"old": old, "new": new, "all": every},
    }
    return {
        "method": method,
        "supervision": supervision,
        "scores": {"tiny": {"iou": iou, **means}},
        "train_s": 60.0,
        "images": 10,
        "versions": {"cilseg": "1", "torch": "2"},
        **changes,
    }


@pytest.fixture
def config(tmp_path: Path) -> ProtocolConfig:
    content = tree(tmp_path, seeds=[0, 1])
    content["methods"]["ft"]["label"] = "FT <b>"
    return load_protocol(write_protocol(tmp_path / "p.yaml", content))


@pytest.fixture
def results() -> dict[Cell, dict[str, Any]]:
    return {
        Cell("overlap", 0, "base", 0): result("base", "masks", 50.0, None, 55.0),
        Cell("overlap", 1, "base", 0): result("base", "masks", 52.0, None, 57.0),
        Cell("overlap", 0, "ft", 1): result("ft", "masks", 10.0, 40.0, 30.0),
        Cell("overlap", 0, "tags", 1): result("wilson", "tags", 45.0, 30.0, 44.0),
        Cell("overlap", 1, "tags", 1): result("wilson", "tags", 47.0, 34.0, 46.0),
    }


PUBLISHED = [
    PublishedRow("wilson", "Paper, table 1", "C", "", "", {"overlap": (74.2, 41.7, 67.2)}),
    PublishedRow("eps", "Paper, table 1", "C", "", "", {"overlap": (69.4, 34.5, 62.1)}),
]


def test_markdown(config: ProtocolConfig, results) -> None:
    lines = markdown(make_table(config, results, published=PUBLISHED))
    assert lines[:6] == [
        "| row | learns from | overlap old | overlap new | overlap all | seeds | s |",
        "|---|---|---:|---:|---:|---:|---:|",
        "| Base | before the step | 51.0 ± 1.4 | - | 56.0 ± 1.4 | 2 | 60 |",
        "| FT <b> | pixel masks | 10.0 | 40.0 | 30.0 | 1 | 60 |",
        "| WILSON | image tags | 46.0 ± 1.4 | 32.0 ± 2.8 | 45.0 ± 1.4 | 2 | 60 |",
        "| *WILSON* | *published: Paper, table 1, convention C* | *74.2* | *41.7* | *67.2* | | |",
    ]
    assert "| WILSON | overlap | 46.0 ± 1.4 | 48.0 ± 1.4 | 32.0 ± 2.8 | 44.0 ± 1.4 | 45.0 ± 1.4 |" in lines
    assert f"| {CLASSES[2]} | - | 40.0 | 32.0 ± 2.8 |" in lines
    assert "| *EPS* | *Paper, table 1, convention C* | *69.4* | *34.5* | *62.1* |" in lines


def test_published_numbers_stay_out_of_the_summary(config: ProtocolConfig, results) -> None:
    with_them = summary(make_table(config, results, published=PUBLISHED))
    assert with_them == summary(make_table(config, results))
    assert with_them["overlap_tags_new"] == 32.0
    assert with_them["overlap_base_new"] is None
    assert set(with_them) == {f"overlap_{r}_{g}" for r in ("base", "ft", "tags") for g in ("old", "new", "all")}


def test_a_dash_in_a_row_becomes_an_underscore(config: ProtocolConfig, results) -> None:
    methods = {"lwf-mc": config.methods["ft"]}
    renamed = {Cell("overlap", 0, "lwf-mc", 1): results[Cell("overlap", 0, "ft", 1)]}
    assert set(summary(make_table(config.model_copy(update={"methods": methods}), renamed))) == {
        f"overlap_lwf_mc_{g}" for g in ("old", "new", "all")
    }


def test_versions_that_differ_are_told(config: ProtocolConfig, results) -> None:
    results[Cell("overlap", 0, "ft", 1)]["versions"] = {"cilseg": "1", "torch": "3"}
    assert any("several versions" in note for note in make_table(config, results).notes)


def test_no_cell_no_table(config: ProtocolConfig) -> None:
    assert markdown(make_table(config, {})) == ["No cell is finished yet."]
    assert "<!DOCTYPE html>" in render_page(make_table(config, {}))


def test_spread() -> None:
    assert str(Spread.of([])) == "-"
    assert str(Spread.of([None, 3.0])) == "3.0"
    assert str(Spread.of([2.0, 4.0])) == "3.0 ± 1.4"


class _Page(HTMLParser):
    """Checks that tags nest, and gathers text, references and the classes of table rows."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [str(v) for k, v in attrs if k in ("src", "href")]
        if tag == "tr":
            self.rows.append((given.get("class") or "", []))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.rows and "tr" in self.open and data.strip():
            self.rows[-1][1].append(data.strip())


def parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_parses_and_refers_to_nothing_outside(config: ProtocolConfig, results) -> None:
    page = render_page(make_table(config, results, published=PUBLISHED), command="cilseg bench protocol x")
    parser = parsed(page)
    assert parser.references == []
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page
    assert "FT <b>" in "".join(parser.text)  # shown, not obeyed
    assert "cilseg bench protocol x" in "".join(parser.text)


def test_published_lines_have_a_style_of_their_own(config: ProtocolConfig, results) -> None:
    parser = parsed(render_page(make_table(config, results, published=PUBLISHED)))
    own = [cells for style, cells in parser.rows if style != "published"]
    foreign = [cells for style, cells in parser.rows if style == "published"]
    assert [c[0] for c in foreign] == ["WILSON", "EPS"]
    assert all("published: Paper, table 1, convention C" in c for c in foreign)
    assert not any("74.2" in c or "69.4" in c for c in own)
    assert any(c[0] == "WILSON" and "46.0" in c for c in own)


def test_bars_have_the_length_of_their_number(config: ProtocolConfig, results) -> None:
    page = render_page(make_table(config, results))
    assert '<i class="old" style="width:10.0%"></i>' in page
    assert '<i class="new" style="width:32.0%"></i><u style="left:29.2%;width:5.7%"></u>' in page


@pytest.mark.parametrize("name", ["voc-15-5", "voc-10-10", "voc-15-1", "voc-19-1", "coco-to-voc"])
def test_published_numbers_fit_their_convention(name: str) -> None:
    config = load_protocol(name)
    n_old, n_new = config.step_sizes[0], sum(config.step_sizes[1:])
    rows = published_rows(name)
    assert rows
    for row in rows:
        for rule, (old, new, every) in row.scores.items():
            assert rule in config.rules
            if None in (old, new, every) or "fit no convention" in row.note or "per-class row averages" in row.note:
                continue
            where = f"{row.method} {rule} {row.where}"
            if row.convention == "B":
                assert ((n_old + 1) * old + n_new * new) / (n_old + n_new + 1) == pytest.approx(every, abs=0.15), where
            elif row.convention == "A":
                assert (n_old * old + n_new * new) / (n_old + n_new) == pytest.approx(every, abs=0.15), where
            else:  # what is left over is the IoU of background
                background = (n_old + n_new + 1) * every - n_old * old - n_new * new
                assert 70 < background < 95, (where, background)


def test_nothing_is_published_where_nothing_is_known() -> None:
    for name in protocol_names():
        assert bool(published_rows(name)) == name.startswith(("voc-1", "coco"))
