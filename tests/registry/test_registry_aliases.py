"""Promotion, rollback, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from registry_bundles import BASE, attach_gate, make_bundle, on_local_files, registered

from cilseg.errors import ArtifactError, ConflictError, GateError, InputError, NotFoundError
from cilseg.registry import Registry, Version


def _child(registry: Registry, tmp_path: Path, parent: Version, *, seed: int, adds: str) -> Version:
    classes = parent.manifest.class_set.extend([adds], step=1)
    return registry.register(
        "animals", make_bundle(tmp_path / f"child-{seed}", seed=seed, classes=classes, parent=parent.digest)
    )


def test_history_is_appended_and_rollback_goes_further_back(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 4)
    for number in (1, 2, 3):
        registry.promote(f"animals:{number}", who="ann", why=f"try {number}")
    assert registry.rollback("animals", who="bob", why="worse").to_number == 2
    assert registry.rollback(None).to_number == 1
    registry.promote("animals:4")
    assert registry.rollback("animals").to_number == 1  # what it pointed to before, not 2 or 3
    with pytest.raises(ConflictError, match=r"is at animals:1 and has no earlier version.*cilseg promote animals:N"):
        registry.rollback("animals")
    history = registry.history("animals")
    moves = [(e.action, e.from_number, e.to_number) for e in history]
    assert moves == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
        ("promote", 1, 4),
        ("rollback", 4, 1),
    ]
    assert (history[1].who, history[1].why) == ("ann", "try 2")
    assert (history[3].who, history[3].why) == ("bob", "worse")
    assert [e.sequence for e in history] == list(range(5, 12))
    assert all(e.when.endswith("Z") for e in history)
    assert registry.resolve("animals@production").number == 1


def test_promoting_what_is_there_writes_nothing(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 2)
    first = registry.promote("animals:1", who="ann")
    again = registry.promote("animals:1", who="bob")
    assert (first.moved, again.moved) == (True, False)
    assert (again.sequence, again.who) == (first.sequence, "ann")
    assert len(registry.history("animals")) == 1


def test_aliases_are_independent(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 2)
    registry.promote("animals:1")
    registry.promote("animals:2", alias="staging")
    assert [v.aliases for v in registry.versions()] == [("production",), ("staging",)]
    registry.promote("animals@staging")
    assert registry.resolve("animals:2").aliases == ("production", "staging")
    assert len(registry.history("animals", alias="staging")) == 1


def test_rollback_of_what_was_never_set(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    with pytest.raises(NotFoundError, match="animals has no alias 'production'"):
        registry.rollback("animals")
    with pytest.raises(NotFoundError, match=r"no model 'animal' in the registry. Did you mean 'animals'"):
        registry.rollback("animal")


def test_expected_place(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    registry.promote("animals:1", expect="none")
    with pytest.raises(ConflictError, match="expected at nothing and is at animals:1: somebody moved it"):
        registry.promote("animals:2", expect="none")
    registry.promote("animals:2", expect="1")
    registry.promote("animals:3", expect="animals:2")
    with pytest.raises(ConflictError, match="expected at animals:2 and is at animals:3"):
        registry.promote("animals:1", expect="animals:2")
    assert len(registry.history("animals")) == 3


# The gate


def test_a_child_needs_the_gate(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    registry.promote(base.ref)
    child = _child(registry, tmp_path, base, seed=7, adds="cow")
    with pytest.raises(GateError, match=r"no gate verdict. Run `cilseg validate animals:2` first.*--force --reason"):
        registry.promote(child.ref)
    for verdict in ("HOLD", "REJECT"):
        attach_gate(registry, child, verdict)
        with pytest.raises(GateError, match=rf"The gate said {verdict} for animals:2.*gate.html"):
            registry.promote(child.ref)
    assert registry.resolve("animals@production") == registry.resolve("animals:1")
    attach_gate(registry, child, "PROMOTE")
    event = registry.promote(child.ref)
    assert (event.to_number, event.forced) == (2, False)
    assert event.gate_report == f"gate.json {registry.attachment(child, 'gate.json').sha256}"
    assert registry.promote("animals:1").to_number == 1  # a parentless version needs no verdict


def test_a_verdict_counts_only_on_the_terms_of_the_parent(registry: Registry, tmp_path: Path) -> None:
    base, other = registered(registry, tmp_path, 2)
    child = _child(registry, tmp_path, base, seed=7, adds="cow")

    def attach(reference: str, **policy: object) -> None:
        content = {"verdict": "PROMOTE", "reference_digest": reference, "policy": policy}
        registry.attach(child, "gate.json", json.dumps(content).encode(), kind="gate")

    attach(base.digest, tolerance_points=5.0, min_images_per_class=10)
    with pytest.raises(
        GateError,
        match=r"laxer policy.*animals:1: tolerance_points 5 instead of 3; min_images_per_class 10 instead of 20",
    ):
        registry.promote(child.ref)
    attach(other.digest, tolerance_points=3.0)
    with pytest.raises(GateError, match=r"not with its parent animals:1"):
        registry.promote(child.ref)
    assert registry.history("animals") == []
    assert registry.promote(child.ref, force=True, why="agreed").forced
    registry.promote(base.ref)
    attach(base.digest, tolerance_points=2.0)
    assert not registry.promote(child.ref).forced


def test_force_needs_a_reason_and_stands_out(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    child = _child(registry, tmp_path, base, seed=7, adds="cow")
    with pytest.raises(InputError, match=r"needs a reason.*--reason TEXT"):
        registry.promote(child.ref, force=True, why="  ")
    event = registry.promote(child.ref, force=True, why="demo tomorrow")
    assert (event.forced, event.why) == (True, "demo tomorrow")
    attach_gate(registry, child, "PROMOTE")
    registry.promote(base.ref)
    assert not registry.promote(child.ref, force=True, why="not needed").forced
    assert [e.forced for e in registry.history("animals")] == [True, False, False]


@on_local_files
def test_damaged_verdict_is_no_verdict(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    child = _child(registry, tmp_path, base, seed=7, adds="cow")
    attach_gate(registry, child, "HOLD")
    path = registry.attachment(child, "gate.json").path
    path.chmod(0o644)
    path.write_text('{"verdict": "PROMOTE"}')
    with pytest.raises(GateError, match=r"gate.json.*is damaged"):
        registry.promote(child.ref)


def test_registering_does_not_get_round_the_gate(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    bundle = make_bundle(tmp_path / "c", seed=3, classes=BASE.extend(["cow"], step=1), parent=base.digest)
    with pytest.raises(GateError, match="before the gate has judged it"):
        registry.register("animals", bundle, alias="production")
    assert len(registry.versions()) == 1
    child = registry.register("animals", bundle, alias="candidate")
    assert child.aliases == ("candidate",)
    attach_gate(registry, child, "PROMOTE")
    assert registry.register("animals", bundle, alias="production").aliases == ("candidate", "production")


# Class names


def test_an_id_keeps_its_name(registry: Registry, tmp_path: Path) -> None:
    (base,) = registered(registry, tmp_path, 1)
    cow = _child(registry, tmp_path, base, seed=7, adds="cow")
    sheep = _child(registry, tmp_path, base, seed=8, adds="sheep")
    for child in (cow, sheep):
        attach_gate(registry, child, "PROMOTE")
    registry.promote(base.ref)
    assert not registry.promote(cow.ref).class_change  # a new id is no change
    with pytest.raises(ConflictError, match=r"animals:2 to animals:3 .*3: 'cow' -> 'sheep'.*--class-change"):
        registry.promote(sheep.ref)
    assert registry.promote(sheep.ref, class_change=True).class_change
    with pytest.raises(ConflictError, match=r"3: 'sheep' -> 'cow'"):
        registry.rollback("animals")
    event = registry.rollback("animals", class_change=True)
    assert (event.to_number, event.class_change) == (2, True)
    assert registry.rollback("animals").to_number == 1  # an id that goes is no change


@on_local_files
def test_rollback_leaves_a_damaged_version_and_never_goes_to_one(registry: Registry, tmp_path: Path) -> None:
    one, two = registered(registry, tmp_path, 2)
    registry.promote(one.ref)
    registry.promote(two.ref)
    (one.path / "labels.txt").unlink()
    with pytest.raises(ArtifactError, match=r"labels.txt is missing"):
        registry.rollback("animals")
    registry.register("animals", tmp_path / "bundle-animals-0")
    (two.path / "manifest.json").unlink()
    assert registry.rollback("animals").to_number == 1
