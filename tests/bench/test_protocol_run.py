"""Cells in their own processes: a whole run, resuming after kill -9, failures, other settings, the command line."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_protocol import CLASSES, tree, write_protocol
from typer.testing import CliRunner

from cilseg.bench.cell import LOCK
from cilseg.bench.cells import CELL, WEIGHTS, read_cell, run_cell
from cilseg.bench.config import BASE
from cilseg.bench.plan import Cell, differing, identity
from cilseg.bench.protocol import ProtocolRequest, open_protocol, record, run_protocol
from cilseg.bench.runner import run_cells
from cilseg.cli.main import app
from cilseg.config import OptimiserConfig, UpdateConfig
from cilseg.errors import ConflictError, InputError, TrainingError
from cilseg.methods.wilson import WilsonOptions

FIRST = Cell("overlap", 0, BASE, 0)


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny protocol run to its end, two cells side by side."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_protocol(folder / "tiny.yaml", tree(scenes))
    opened = open_protocol(ProtocolRequest(str(path), work=folder / "work"))
    said: list[str] = []
    table, outcome = run_protocol(opened, jobs=2, say=said.append)
    return opened, table, outcome, said


def test_a_run_leaves_cells_tables_and_weights(finished) -> None:
    opened, _, outcome, said = finished
    assert not outcome.failed
    assert set(outcome.results) == set(opened.cells)
    assert any(line.startswith("overlap/seed0/tags/step1: old ") for line in said)
    cell = read_cell(opened.work / "overlap/seed0/tags/step1")
    assert cell is not None
    assert (cell["method"], cell["supervision"], cell["step"], cell["seed"]) == ("wilson", "tags", 1, 0)
    scores = cell["scores"]["tiny"]
    assert set(scores["iou"]) == {"background", *CLASSES}
    assert set(scores) == {"iou", "A", "B", "C", "confusion", "images"}
    assert sum(map(sum, scores["confusion"])) == 6 * 64 * 64
    assert cell["train_s"] > 0
    assert cell["config"]["update"]["wilson"]["warm_up_epochs"] == 1
    assert {"cilseg", "torch", "python"} <= set(cell["versions"])
    assert load_file(opened.work / "overlap/seed0/tags/step1" / WEIGHTS)
    assert not list(opened.work.rglob("resume.safetensors"))
    figures = json.loads((opened.work / "summary.json").read_text())
    assert set(figures) == {f"overlap_{r}_{g}" for r in ("base", "ft", "tags") for g in ("old", "new", "all")}
    assert (opened.work / "table.md").read_text().startswith("# Tiny\n\n| row | learns from |")
    assert (opened.work / "table.html").read_text().startswith("<!DOCTYPE html>")


def test_finished_cells_are_kept(finished) -> None:
    opened, _, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in opened.work.rglob(CELL)}
    said: list[str] = []
    _, outcome = run_protocol(opened, say=said.append)
    assert len(outcome.results) == 3
    assert not said
    assert {p: p.stat().st_mtime_ns for p in opened.work.rglob(CELL)} == before


def test_a_changed_setting_is_noticed_and_named(finished) -> None:
    opened, _, _, _ = finished
    changed = open_protocol(
        ProtocolRequest(
            opened.request.protocol, work=opened.work, overrides=("methods.ft.optimiser.lr_body=0.01",), cells=("ft",)
        )
    )
    assert {s.cell.row: s.status for s in changed.states()} == {"base": "done", "ft": "other settings"}
    with pytest.raises(ConflictError) as caught:
        run_cells(changed.data, changed.work, changed.cells)
    assert "overlap/seed0/ft/step1: update.optimiser.lr_body" in str(caught.value)
    assert "--redo" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "settings.train_void=background",
        "settings.test_unseen=void",
        "data.withheld=4",
        "model.head_dilations=[1, 3]",
        "runtime.precision=bf16-mixed",
        "base.0.momentum=0.8",
    ],
)
def test_whatever_decides_the_result_belongs_to_the_identity(finished, override: str) -> None:
    opened, _, _, _ = finished
    request = ProtocolRequest(opened.request.protocol, work=opened.work, overrides=(override,))
    assert open_protocol(request).states()[0].status == "other settings"


def test_an_option_added_later_leaves_cells_valid() -> None:
    now = {"update": UpdateConfig().model_dump(mode="json"), "base": [OptimiserConfig().model_dump(mode="json")]}
    recorded = json.loads(json.dumps(now))
    del recorded["update"]["optimiser"]["clip_norm"], recorded["base"][0]["power"]
    assert differing(recorded, now) == []
    now["update"]["wilson"] = WilsonOptions().model_dump(mode="json")
    assert differing(recorded, now) == []
    now["update"]["wilson"]["alpha"] = 0.25
    now["base"][0]["epochs"] = 31
    assert differing(recorded, now) == ["update.wilson", "base.0.epochs"]


def test_an_identity_holds_the_defaults_of_its_day(finished) -> None:
    opened, _, _, _ = finished
    now = identity(opened.data, Cell("overlap", 0, "tags", 1), parent_weights=None)
    recorded = json.loads(json.dumps(now))
    assert differing(recorded, now) == []
    recorded["update"]["wilson"]["ngwp_epsilon"] = 0.5  # as if the default had been this
    assert differing(recorded, now) == ["update.wilson.ngwp_epsilon"]


@pytest.mark.parametrize("override", ["runtime.checkpoint_every_s=7", "title=Other", "methods.ft.label=Other"])
def test_what_does_not_decide_it_does_not(finished, override: str) -> None:
    opened, _, _, _ = finished
    request = ProtocolRequest(opened.request.protocol, work=opened.work, overrides=(override,))
    assert {s.status for s in open_protocol(request).states()} == {"done"}


def test_a_record_has_the_shape_of_every_benchmark(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, table, _, _ = finished
    monkeypatch.setattr("cilseg.bench.protocol.results_directory", lambda folder: folder)
    payload = json.loads(record(opened, table, "tiny_record").read_text())
    keys = {"name", "command", "date", "machine", "versions", "note", "summary", "rows"}
    assert set(payload) == keys == set(json.loads(Path("benchmarks/results/voc_animals_story.json").read_text()))
    assert len(payload["rows"]) == 3
    assert "confusion" not in payload["rows"][0]["scores"]["tiny"]
    assert payload["summary"]["overlap_tags_new"] == pytest.approx(
        next(r for r in table.rows if r.name == "tags").conventions["C"]["new"].mean, abs=0.01
    )
    assert payload["command"] == "cilseg bench protocol tiny.yaml"
    assert str(opened.work.parent) not in json.dumps(payload)
    assert "| WILSON | image tags |" in (opened.work / "tiny_record.md").read_text()


def test_a_killed_cell_goes_on_and_ends_as_if_nothing_had_happened(opened, tmp_path: Path) -> None:
    protocol = opened(("base.0.epochs=15", "runtime.checkpoint_every_s=0"), cells=("base",))
    folder = protocol.work / FIRST.id
    outcomes = []
    runner = threading.Thread(target=lambda: outcomes.append(run_cells(protocol.data, protocol.work, [FIRST])))
    runner.start()
    log = folder / "cycle1" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.is_file() and log.read_text().count("\n") > 6 and (folder / "cycle1/resume.safetensors").is_file()):
        assert time.monotonic() < deadline and runner.is_alive(), f"the cell did not start: {outcomes}"  # noqa: PT018
        time.sleep(0.01)
    os.kill(int((folder / LOCK).read_text()), signal.SIGKILL)
    runner.join()
    assert "signal 9" in outcomes[0].failed[FIRST]
    assert not (folder / CELL).exists()
    done_before = log.read_text().count("\n")
    assert [s.status for s in protocol.states()] == ["failed"]

    outcome = run_cells(protocol.data, protocol.work, [FIRST])
    assert not outcome.failed
    n_images = outcome.results[FIRST]["images"]
    lines = [json.loads(line)["iteration"] for line in log.read_text().splitlines()]
    assert lines == list(range(1, 15 * (n_images // 4) + 1))
    shown = (folder / "output.log").read_text()
    assert f"20/{len(lines)}" in shown
    assert done_before < len(lines)

    whole = tmp_path / "whole"
    whole.mkdir()
    again = run_cell(protocol.data, FIRST, whole, parent=None)
    assert again["weights_sha256"] == outcome.results[FIRST]["weights_sha256"]
    assert again["scores"] == outcome.results[FIRST]["scores"]


def test_a_failing_cell_does_not_stop_the_others(opened) -> None:
    protocol = opened(("methods.ft.optimiser.lr_body=1e12", "methods.ft.optimiser.clip_norm=null"))
    said: list[str] = []
    _, outcome = run_protocol(protocol, say=said.append)
    assert {c.row for c in outcome.results} == {"base", "tags"}
    (why,) = outcome.failed.values()
    assert "exit code 1; last lines of" in why
    assert "not finite" in why
    assert {s.cell.row: s.status for s in protocol.states()}["ft"] == "failed"
    assert "| FT |" not in (protocol.work / "table.md").read_text()


def test_two_processes_never_work_on_one_cell(opened) -> None:
    import fcntl

    protocol = opened(cells=("base",))
    folder = protocol.work / FIRST.id
    folder.mkdir(parents=True)
    with (folder / LOCK).open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = run_cells(protocol.data, protocol.work, [FIRST])
    assert "Process 4711 works on" in outcome.failed[FIRST]


def test_every_step_starts_from_the_one_before(opened, tmp_path: Path) -> None:
    protocol = opened(step_sizes=[1, 1, 1], cells=("tags",))
    folders = {}
    for cell in protocol.cells:
        folders[cell] = tmp_path / cell.id
        folders[cell].mkdir(parents=True)
        result = run_cell(protocol.data, cell, folders[cell], parent=folders.get(cell.parent))
        assert set(result["scores"]["tiny"]["iou"]) == {"background", *CLASSES[: cell.step + 1]}
    assert [c.step for c in protocol.cells] == [0, 1, 2]
    assert (
        read_cell(folders[protocol.cells[2]])["identity"]["parent_weights"]
        == (read_cell(folders[protocol.cells[1]])["weights_sha256"])
    )
    table = protocol.table({c: read_cell(f) for c, f in folders.items()})
    assert [r.step for r in table.steps] == [0, 1, 2]
    assert [r.step for r in table.rows] == [0, 2]


def test_picks_bring_what_they_start_from(opened) -> None:
    assert [c.id for c in opened(cells=("tags",)).cells] == ["overlap/seed0/base/step0", "overlap/seed0/tags/step1"]
    with pytest.raises(InputError) as caught:
        opened(cells=("tagz", "ft:3"))
    assert "no row is called 'tagz'. Did you mean 'tags'?" in str(caught.value)
    assert "'ft:3': row 'ft' has the seeds [0]" in str(caught.value)


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["bench", "protocol", *arguments])


def test_list_says_where_each_cell_stands(finished) -> None:
    opened, _, _, _ = finished
    result = invoke(opened.request.protocol, "--work", str(opened.work), "--list", "--json")
    states = {row["cell"]: row["state"] for row in json.loads(result.stdout)}
    assert states == {f"overlap/seed0/{r}": "done" for r in ("base/step0", "ft/step1", "tags/step1")}


def test_check_prints_sizes_and_cost_and_trains_nothing(scenes: Path, tmp_path: Path) -> None:
    path = write_protocol(tmp_path / "tiny.yaml", tree(scenes))
    work = tmp_path / "work"
    result = invoke(str(path), "--work", str(work), "--check", "--json")
    assert result.exception is None
    payload = json.loads(result.stdout)
    base, step = payload["sizes"]
    assert base["images"] - base["trained"] == 3
    assert step["images"] == step["trained"] > 0
    costs = {c["row"]: c for c in payload["costs"]}
    assert costs["base"]["iterations"] == base["trained"] // 4
    assert costs["ft"]["iterations"] == step["images"] // 4
    assert payload["seconds"] > 0
    assert not list(work.rglob(CELL))


def test_an_unknown_method_is_refused_before_anything_is_trained(scenes: Path, tmp_path: Path) -> None:
    path = write_protocol(tmp_path / "tiny.yaml", tree(scenes, methods={"wilso": {}}))
    result = invoke(str(path), "--work", str(tmp_path / "work"))
    assert isinstance(result.exception, TrainingError)
    assert result.exception.exit_code == 1
    assert "overlap/seed0/wilso/step1: Unknown method 'wilso'. Did you mean 'wilson'?" in str(result.exception)
    assert not list((tmp_path / "work").rglob(WEIGHTS))


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    result = invoke("voc-15-5", "--data", str(tmp_path / "VOC"), "--work", str(tmp_path / "work"))
    assert isinstance(result.exception, InputError)
    assert f"no folder {tmp_path / 'VOC'}" in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_scenes_are_generated_where_they_are_missing(tmp_path: Path) -> None:
    arguments = [f"data.sources.scenes.scenes.{key}" for key in ("train=30", "val=4", "size_px=64")]
    request = ProtocolRequest(
        "scenes-6-2", work=tmp_path / "work", overrides=(*arguments, "data.withheld=2"), cells=("wilson",)
    )
    opened = open_protocol(request)
    assert len((tmp_path / "work" / "data-scenes" / "train.txt").read_text().split()) == 30
    assert len(opened.data.withheld) == 2
    assert {s.status for s in opened.states()} == {"ready", "waits"}
