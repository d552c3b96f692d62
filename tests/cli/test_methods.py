"""``cilseg methods``: every row of the results table, with what it learns from and needs."""

from __future__ import annotations

from cli_story import Commands

from cilseg.methods import METHODS

SUPERVISION = {
    **dict.fromkeys(("joint", "ft", "lwf", "lwf-mc", "ilt", "mib", "plop", "sdr", "recall", "masks"), "masks"),
    "pifs": "shots",
    "mib-points": "points",
    "mib-scribbles": "scribbles",
    **dict.fromkeys(("cam", "seam", "ss", "eps", "wilson", "tags"), "tags"),
}


def test_as_json(cilseg: Commands) -> None:
    answer = cilseg("methods", "--json")
    assert answer.code == 0
    assert answer.err == ""
    rows = {row["name"]: row for row in answer.json()}
    assert {name: row["supervision"] for name, row in rows.items() if name in SUPERVISION} == SUPERVISION
    assert set(rows) == set(METHODS)
    assert all(set(row) == {"name", "supervision", "needs", "idea", "paper", "options"} for row in rows.values())
    assert all(row["idea"] and row["paper"] for row in rows.values())
    assert {name: row["needs"] for name, row in rows.items() if row["needs"]} == {
        "sdr": ["prototypes"],
        "recall": ["replay"],
        "eps": ["saliency"],
    }
    assert rows["mib"]["options"] == {"kd_weight": None}
    assert rows["plop"]["options"]["gate"] == "paper"
    assert rows["wilson"]["options"]["prior"] == "learned"
    assert rows["seam"]["options"]["random_walk"] is False
    assert rows["ft"]["options"] == {}
    assert "our" in rows["mib-points"]["paper"] or "reconstructed" in rows["mib-points"]["paper"]


def test_as_a_table(cilseg: Commands) -> None:
    answer = cilseg("methods")
    assert answer.code == 0
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    for name, supervision in SUPERVISION.items():
        assert supervision in lines[name]
    assert "saliency" in lines["eps"]
    assert "docs/methods.md" in answer.out
