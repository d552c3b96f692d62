"""Rows that learn from something else than masks or tags, or from a base of their own, through a whole protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_protocol import CLASSES, tree, write_protocol

from cilseg.bench.cells import read_cell, run_cell, step_inputs, training_set
from cilseg.bench.plan import Cell, training_rows
from cilseg.bench.protocol import ProtocolRequest, open_protocol
from cilseg.classes import UNLABELLED_ID
from cilseg.config import OptimiserConfig
from cilseg.data.labels import map_mask
from cilseg.models.build import new_model
from cilseg.train.steps import KEEP

SMALL = {"epochs": 1, "batch_size": 4, "crop_px": 64}
ROWS = {
    "mib-points": {},
    "mib-scribbles": {},
    "recall": {"replay": "withheld"},
    "eps": {"saliency": "builtin", "options": {"eps": {"weak": SMALL, "scales": [1.0]}}},
    "pifs": {
        "shots": 2,
        "optimiser": {"freeze_norm": True},
        "base": {"model": {"classifier": "cosine"}, "cycles": [SMALL]},
    },
    "tags": {"prior": "classes"},
    "joint": {},
    "mib": {},
}
NEW_ID = 3


@pytest.fixture(scope="module")
def rows(scenes, tmp_path_factory):
    """The protocol opened, nothing trained."""
    folder = tmp_path_factory.mktemp("rows")
    data = {"sources": {"tiny": {"root": str(scenes)}}, "withheld": 6}
    path = write_protocol(folder / "tiny.yaml", tree(scenes, methods=ROWS, data=data))
    return open_protocol(ProtocolRequest(str(path), work=folder / "work"))


@pytest.fixture(scope="module")
def model(rows):
    return new_model(rows.data.config.model, rows.data.classes_until(0), seed=0)


def set_of(rows, model, row: str):
    return training_set(rows.data, Cell("overlap", 0, row, 1), OptimiserConfig(**SMALL), model=model, seed=0)


def test_points_and_scribbles_are_all_that_a_row_sees(rows, model):
    truth = set_of(rows, model, "mib")
    for row, allowed in (("mib-points", {NEW_ID}), ("mib-scribbles", {0, NEW_ID})):
        data = set_of(rows, model, row)
        assert data.size == truth.size
        assert data.tags.shape == (data.size, len(CLASSES))
        assert (data.tags[:, NEW_ID - 1] == 1).all()
        for index in range(data.size):
            mask, full = data.read_mask(index), truth.read_mask(index)
            assert set(mask.flat) <= allowed | {UNLABELLED_ID}
            assert (mask == UNLABELLED_ID).mean() > 0.7
            marked = mask == NEW_ID
            assert (full[marked] == NEW_ID).mean() > 0.8 if marked.any() else row == "mib-points"


@pytest.mark.parametrize("kind", ["objects", "classes"])
def test_tags_may_have_priors_that_know_where_objects_are(rows, model, tmp_path, kind):
    row = rows.data.config.methods["tags"].model_copy(update={"prior": kind})
    config = rows.data.config.model_copy(update={"methods": {**rows.data.config.methods, "tags": row}})
    data, cell = replace(rows.data, config=config), Cell("overlap", 0, "tags", 1)
    inputs = step_inputs(data, cell, parent=tmp_path, model=model)
    for index, row in enumerate(training_rows(data, cell)):
        mask = map_mask(
            data.train[1].mask(row), data.train[1].label_names, data.classes_until(1), visible=list(CLASSES)
        )
        there = mask == NEW_ID if kind == "classes" else mask > 0
        prior = inputs.prior(index)
        assert prior.shape == (*mask.shape, 1)
        assert set(prior.flat) <= {0, 255}
        assert (prior[..., 0][there] == 255).all()
        near = np.lib.stride_tricks.sliding_window_view(np.pad(there, 3), (7, 7)).any(axis=(2, 3))
        assert np.array_equal(prior[..., 0] == 255, near)


def test_shots_are_the_first_images_of_a_class(rows, model):
    chosen = training_rows(rows.data, Cell("overlap", 0, "pifs", 1))
    everything = training_rows(rows.data, Cell("overlap", 0, "mib", 1))
    assert chosen == everything[:2]
    data = set_of(rows, model, "pifs")
    assert data.size == 2
    values = set(np.unique([data.read_mask(i) for i in range(2)]).tolist())
    assert NEW_ID in values
    mib = set(np.unique([set_of(rows, model, "mib").read_mask(i) for i in range(2)]).tolist())
    assert {1, 2} & values  # a few masks show what is in the image
    assert not {1, 2} & mib


def test_withheld_images_stand_in_for_every_old_class_that_they_show(rows, model, tmp_path):
    cell = Cell("overlap", 0, "recall", 1)
    inputs = step_inputs(rows.data, cell, parent=tmp_path, model=model)
    assert inputs.kept == tmp_path / KEEP
    assert set(inputs.replay.class_ids) == {1, 2}
    withheld = rows.data.withheld_rows(1)
    shown = sum(len(rows.data.tags[1][i] & set(CLASSES[:2])) for i in withheld)
    assert len(inputs.replay.class_ids) == shown >= len(withheld)
    assert inputs.replay.read_image(0).shape == (64, 64, 3)
    assert not set(withheld) & set(training_rows(rows.data, cell))
    assert inputs.saliency is None
    eps = step_inputs(rows.data, Cell("overlap", 0, "eps", 1), parent=tmp_path, model=model)
    assert (eps.saliency, eps.replay) == ("builtin", None)


def test_a_run_from_end_to_end(rows):
    results = {}
    for cell in rows.cells:  # here, not each in a process of its own as in a real run
        folder = rows.work / cell.id
        folder.mkdir(parents=True)
        results[cell] = run_cell(rows.data, cell, folder, parent=rows.work / cell.parent.id if cell.parent else None)
    table = rows.table(results)
    assert {state.status for state in rows.states()} == {"done"}
    cells = {cell.row: read_cell(rows.work / cell.id) for cell in rows.cells}
    assert set(cells) == {"base", *ROWS}
    assert {row: cell["supervision"] for row, cell in cells.items()} == {
        **dict.fromkeys(("base", "recall", "joint", "mib"), "masks"),
        "mib-points": "points",
        "mib-scribbles": "scribbles",
        "eps": "tags",
        "tags": "tags",
        "pifs": "shots",
    }
    assert cells["pifs"]["images"] == 2
    for cell in cells.values():
        assert set(cell["scores"]["tiny"]["iou"]) >= {"background", *CLASSES[:2]}
    assert {row.name for row in table.rows} == {"base", *ROWS}
    folders = {row: rows.work / f"overlap/seed0/{row}/step1" for row in ROWS}
    assert (folders["pifs"] / "base1" / "log.jsonl").is_file()  # the base with a cosine classifier
    assert not (folders["mib"] / "base1").exists()
    assert [f.name for f in (folders["recall"] / KEEP).iterdir()] == ["helper_step1.safetensors"]
    assert len(list((folders["eps"] / "training" / "pseudo_labels").iterdir())) == cells["eps"]["images"]
    base = rows.work / "overlap/seed0/base/step0"
    assert [f.name for f in (base / KEEP).iterdir()] == ["prototypes.safetensors"]
    given = {row: cell["identity"].get("given") for row, cell in cells.items()}
    assert given["recall"] == {"replay": "withheld"}
    assert given["eps"] == {"saliency": "builtin"}
    assert given["tags"] == {"prior": "classes"}
    assert given["pifs"]["shots"] == 2
    assert given["pifs"]["base"]["model"] == {"classifier": "cosine"}
