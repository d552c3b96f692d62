"""cilseg list, show, promote, rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from registry_bundles import BASE, attach_gate, make_bundle, registered
from typer.testing import CliRunner, Result

from cilseg.cli import list_, promote, rollback, show
from cilseg.errors import GateError, NotFoundError
from cilseg.registry import Registry

app = typer.Typer()
for verb, module in {"list": list_, "show": show, "promote": promote, "rollback": rollback}.items():
    app.command(verb)(module.command)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("CILSEG_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("COLUMNS", "200")
    return Registry.open(None)


def _run(*args: str) -> Result:
    result = CliRunner().invoke(app, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_list_and_show(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    child = registry.register(
        "animals",
        make_bundle(tmp_path / "c", seed=3, classes=BASE.extend(["cow"], step=1), parent=base.digest),
        alias="candidate",
        who="bob",
    )
    attach_gate(registry, child, "HOLD")
    registry.attach(child, "model.onnx", b"x", kind="onnx", metadata={"metrics": {"agreement": 0.9995}})

    rows = json.loads(_run("list", "--json").stdout)
    assert [(r["ref"], r["classes"], r["method"], r["parent"], r["aliases"], r["gate"]) for r in rows] == [
        ("animals:1", 2, "supervised", None, [], None),
        ("animals:2", 3, "wilson", "animals:1", ["candidate"], "HOLD"),
    ]
    assert rows[1]["created_at"] == child.created_at
    text = _run("list").stdout
    for expected in ("animals:2", "wilson", "animals:1", "@candidate", "HOLD"):
        assert expected in text

    found = json.loads(_run("show", "animals@candidate", "--json").stdout)
    assert found["class_set"][3] == {"id": 3, "name": "cow", "color": found["class_set"][3]["color"], "step": 1}
    assert found["metrics"] == {"model.onnx": {"agreement": 0.9995}}
    assert found["files"] == child.manifest.files
    assert [e["who"] for e in found["history"]["candidate"]] == ["bob"]
    text = _run("show", "animals:2").stdout
    for expected in ("cow", "animals:1", "gate.json", "0.9995", "checkpoint.safetensors", "history of @candidate"):
        assert expected in text


def test_a_damaged_version_does_not_hide_the_others(registry: Registry, tmp_path: Path) -> None:
    one, _ = registered(registry, tmp_path, 2)
    (one.path / "manifest.json").unlink()
    rows = json.loads(_run("list", "--json").stdout)
    assert "is no bundle" in rows[0]["damaged"]
    assert rows[1]["damaged"] is None
    assert "damaged" in _run("list").stdout


def test_promote_and_rollback(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 2)
    assert _run("promote", "animals:1").stdout == "animals@production: nothing -> 1\n"
    assert _run("promote", "animals:2", "--who", "ann", "--reason", "better").stdout == "animals@production: 1 -> 2\n"
    assert "already at animals:2; nothing was changed" in _run("promote", "animals:2").stdout
    event = json.loads(_run("rollback", "--json", "--reason", "worse").stdout)
    assert (event["action"], event["from_number"], event["to_number"], event["why"]) == ("rollback", 2, 1, "worse")
    assert [e.who for e in registry.history("animals")][1] == "ann"


def test_refusals_reach_the_entry_point(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no registry"):
        _run("list")
    (base,) = registered(registry, tmp_path, 1)
    registry.register(
        "animals", make_bundle(tmp_path / "c", seed=3, classes=BASE.extend(["cow"], step=1), parent=base.digest)
    )
    with pytest.raises(GateError) as caught:
        _run("promote", "animals:2")
    assert caught.value.exit_code == 3
    assert "nothing -> 2" in _run("promote", "animals:2", "--force", "--reason", "must").stdout
    assert "FORCED" in _run("show", "animals:2").stdout
