"""gc keeps what is needed, and fsck finds what is wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from registry_bundles import BASE, attach_gate, make_bundle, on_local_files, registered, reopened

from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg.registry import Registry
from cilseg.registry.check import check_registry
from cilseg.registry.collect import collect_garbage
from cilseg.registry.leases import hold


def _kept(registry: Registry, **options: float) -> dict[str, tuple[str, ...]]:
    return {d.ref: d.reasons for d in collect_garbage(registry, **options).decisions}  # type: ignore[arg-type]


def test_what_is_kept_and_why(registry: Registry, tmp_path: Path) -> None:
    one, two, three, four = registered(registry, tmp_path, 4)
    child = registry.register(
        "animals", make_bundle(tmp_path / "c", seed=9, classes=BASE.extend(["cow"], step=1), parent=four.digest)
    )
    registry.promote(one.ref)
    registry.promote(child.ref, alias="candidate")
    assert all(_kept(registry).values())  # all are young
    with hold(registry, [three]) as lease:
        reasons = _kept(registry, keep_days=0)
        assert reasons["animals:1"] == ("@production points here",)
        assert reasons["animals:2"] == ()
        assert "held by serve" in reasons["animals:3"][0]
        assert reasons["animals:4"] == ("the gate compares a kept version with it",)
        assert reasons["animals:5"] == ("@candidate points here",)
        lease.renew([two])
        assert [ref for ref, why in _kept(registry, keep_days=0).items() if not why] == ["animals:3"]
    assert [ref for ref, why in _kept(registry, keep_days=0).items() if not why] == ["animals:2", "animals:3"]
    assert len(registry.versions()) == 5  # a dry run is the default


def test_history_within_the_retention_keeps_both_ends(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    registry.promote("animals:1")
    registry.promote("animals:2")
    registry.promote("animals:3")
    assert all("moved here or away" in " ".join(why) for why in _kept(registry, keep_days=1).values())


def test_collected_versions_leave_their_history_and_number(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    registry.promote("animals:3")
    registry.promote("animals:1")
    done = collect_garbage(registry, keep_days=0, dry_run=False, who="ann", why="disk is full")
    assert [d.ref for d in done.removable] == ["animals:2", "animals:3"]
    assert done.freed_bytes > 4000
    assert [v.ref for v in registry.versions()] == ["animals:1"]
    assert len(registry.history("animals")) == 2
    for use in (lambda: registry.resolve("animals:3"), lambda: registry.rollback("animals")):
        with pytest.raises(NotFoundError, match=r"files of animals:3 were removed by `cilseg gc`.*old number"):
            use()
    assert registry.store.read_events()[-1]["who"] == "ann"
    assert check_registry(reopened(registry)).faults == ()
    new = registry.register("animals", make_bundle(tmp_path / "new", seed=50))
    assert new.number == 4  # numbers are never given twice
    back = registry.register("animals", tmp_path / "bundle-animals-2")
    assert back.ref == "animals:3"
    assert registry.rollback("animals").to_number == 3
    assert check_registry(reopened(registry)).faults == ()


@on_local_files
def test_files_of_collected_versions_are_gone(registry: Registry, tmp_path: Path) -> None:
    one, two = registered(registry, tmp_path, 2)
    registry.register("zoo", tmp_path / "bundle-animals-0", alias="production")
    collect_garbage(registry, keep_days=0, dry_run=False)
    assert one.path.is_dir()  # zoo:1 has the same content
    assert not two.path.exists()
    assert list((registry.root / "tmp").iterdir()) == []


@on_local_files
def test_old_leftovers_go_and_young_ones_stay(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    old, young = registry.root / "tmp" / "old", registry.root / "tmp" / "young"
    orphan = registry.root / "versions" / ("0" * 64)
    orphan.mkdir()
    for path in (old, young):
        path.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old, orphan):
        os.utime(path, (two_days_ago, two_days_ago))
    notes = check_registry(registry).notes
    assert len(notes) == 3
    assert {item["place"] for item in collect_garbage(registry).leftovers} == {str(old), str(orphan)}
    collect_garbage(registry, dry_run=False)
    assert (old.exists(), orphan.exists(), young.exists()) == (False, False, True)


@on_local_files
def test_a_lease_that_cannot_be_read_stops_gc(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 2)
    lease = registry.root / "leases" / "x.json"
    lease.parent.mkdir()
    lease.write_text("{")
    with pytest.raises(ArtifactError, match=r"lease 'x' cannot be read.*Nothing was removed"):
        collect_garbage(registry, keep_days=0, dry_run=False)
    lease.write_text(json.dumps({"expires_at": "2020-01-01T00:00:00+00:00", "digests": ["sha256:0"], "host": "h"}))
    assert len(collect_garbage(registry, keep_days=0, dry_run=False).removable) == 2
    assert not lease.exists()


def test_a_lease_on_what_is_gone_is_refused(registry: Registry, tmp_path: Path) -> None:
    one, _ = registered(registry, tmp_path, 2)
    registry.promote("animals:2")
    collect_garbage(registry, keep_days=0, dry_run=False)
    with pytest.raises(NotFoundError, match="files of animals:1 were removed"):
        hold(registry, [one])
    assert registry.store.read_leases() == {}


def test_negative_retention(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    with pytest.raises(InputError, match="--keep-days must be 0 or more, got -1"):
        collect_garbage(registry, keep_days=-1)


# fsck


def test_a_whole_registry_is_clean(registry: Registry, tmp_path: Path) -> None:
    one, two = registered(registry, tmp_path, 2)
    attach_gate(registry, one, "HOLD")
    registry.promote(two.ref)
    report = check_registry(registry)
    assert (report.faults, report.notes) == ((), ())
    assert (report.versions, report.events) == (2, 3)
    assert report.files == 2 * 5 + 1


@on_local_files
def test_every_kind_of_damage_is_named(registry: Registry, tmp_path: Path) -> None:
    one, two, three = registered(registry, tmp_path, 3)
    attach_gate(registry, three, "HOLD")
    for path in (one.path / "labels.txt", three.path / "attachments" / "gate.json"):
        path.chmod(0o644)
        path.write_text("rot")
    (two.path / "manifest.json").unlink()
    (one.path / "stranger").write_text("x")
    log = registry.root / "events.jsonl"
    log.write_text(log.read_text().replace('"who":"ann"', '"who":"eve"'))
    faults = "\n".join(check_registry(registry).faults)
    for expected in (
        r"event 1 differs from the database (and 2 more)",
        "labels.txt has",
        "animals:2: ",
        "Attachment 'gate.json' of animals:3 is damaged",
        "stranger is no file of it",
    ):
        assert expected in faults
    assert "labels.txt has" not in "\n".join(check_registry(registry, quick=True).faults)


@on_local_files
def test_a_missing_version_and_a_cut_log(registry: Registry, tmp_path: Path) -> None:
    one, _ = registered(registry, tmp_path, 2)
    one.path.rename(tmp_path / "gone")
    log = registry.root / "events.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[1])
    faults = check_registry(registry).faults
    assert any("line 1" in fault for fault in faults)
    assert any("directory" in fault and "is missing" in fault for fault in faults)
