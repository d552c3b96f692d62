"""Registering and finding versions, through the public interface."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registry_bundles import BASE, make_bundle, on_folder, on_local_files, registered, reopened

from cilseg.errors import ArtifactError, ConflictError, InputError, NotFoundError
from cilseg.registry import Registry


def test_numbers_count_per_name_and_content_is_addressed(registry: Registry, tmp_path: Path) -> None:
    one, two = registered(registry, tmp_path, 2)
    other = registry.register("street", make_bundle(tmp_path / "s", seed=9))
    assert [one.ref, two.ref, other.ref] == ["animals:1", "animals:2", "street:1"]
    assert one.path.name == one.digest.removeprefix("sha256:")
    assert one.manifest.class_set == BASE
    assert [v.ref for v in registry.versions()] == ["animals:1", "animals:2", "street:1"]
    assert [v.ref for v in registry.versions("animals")] == ["animals:1", "animals:2"]
    assert registry.names() == ["animals", "street"]


def test_same_content_again_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    (one,) = registered(registry, tmp_path, 1)
    again = registry.register("animals", tmp_path / "bundle-animals-0")
    assert again == one
    assert len(registry.store.read_events()) == 1


def test_same_content_under_another_name_shares_the_files(registry: Registry, tmp_path: Path) -> None:
    (one,) = registered(registry, tmp_path, 1)
    other = registry.register("zoo", tmp_path / "bundle-animals-0")
    assert (other.ref, other.path) == ("zoo:1", one.path)
    assert registry.resolve(one.digest).ref == "animals:1"


@on_local_files
def test_stored_files_are_read_only_and_whole(registry: Registry, tmp_path: Path) -> None:
    (one,) = registered(registry, tmp_path, 1)
    stored = sorted(p for p in one.path.rglob("*") if p.is_file())
    assert {p.relative_to(one.path).as_posix() for p in stored} == {
        "manifest.json",
        "checkpoint.safetensors",
        "labels.txt",
        "README.md",
        "training/log.jsonl",
    }
    assert {stat.S_IMODE(p.stat().st_mode) for p in stored} == {0o444}
    assert list((registry.root / "tmp").iterdir()) == []


def test_register_with_alias(registry: Registry, tmp_path: Path) -> None:
    version = registry.register("animals", make_bundle(tmp_path / "b"), alias="production", who="ann")
    assert version.aliases == ("production",)
    (event,) = registry.history("animals")
    assert (event.action, event.from_number, event.to_number, event.who) == ("register", None, 1, "ann")


@on_folder
@pytest.mark.parametrize("name", ["", "Animals", "-x", "a b", "a/b", "../x", "x" * 65, "sha256", "a:1", "ä"])
def test_bad_names_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(InputError, match=r"Model name .* Use 1 to 64"):
        registry.register(name, bundle)
    assert not registry.root.exists()


# References


def test_resolve_every_form(registry: Registry, tmp_path: Path) -> None:
    one, two, three = registered(registry, tmp_path, 3)
    assert registry.resolve("animals:2") == two
    assert registry.resolve("animals") == three  # newest, as production is not set
    registry.promote("animals:1")
    assert registry.resolve("animals").ref == "animals:1"
    assert registry.resolve(None).ref == "animals:1"
    assert registry.resolve("animals@production").ref == "animals:1"
    assert registry.resolve("@production").ref == "animals:1"
    assert registry.resolve(":3") == three
    assert registry.resolve(two.digest[:20]) == two
    assert registry.resolve(three.digest).digest == three.digest
    assert one.aliases == ()
    assert registry.resolve("animals:1").aliases == ("production",)


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("animal", NotFoundError, r"no model 'animal'.* Did you mean 'animals'\? It holds: animals, street"),
        ("animals:7", NotFoundError, r"no version animals:7. Versions of animals: 1, 2"),
        ("animals@prodution", NotFoundError, r"no alias 'prodution'. Did you mean 'production'\? It has: production"),
        ("street@production", NotFoundError, r"It has: none. Set it with `cilseg promote street:N"),
        ("sha256:0000000000", NotFoundError, "No version has a digest that starts with"),
        ("sha256:xyz", InputError, "4 to 64 hex digits"),
        ("animals:x", InputError, "'x' is no version number"),
        ("animals:0", InputError, "'0' is no version number"),
        ("", InputError, "empty reference"),
        (None, InputError, r"several models \(animals, street\)"),
    ],
)
def test_resolve_misses_say_what_there_is(
    registry: Registry, tmp_path: Path, ref: str | None, error: type[Exception], message: str
) -> None:
    registered(registry, tmp_path, 2)
    registered(registry, tmp_path, 1, name="street")
    registry.promote("animals:1")
    with pytest.raises(error, match=message):
        registry.resolve(ref)


def test_missing_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CILSEG_REGISTRY", raising=False)
    assert Registry.open(None).root == tmp_path / "cilseg-registry"
    monkeypatch.setenv("CILSEG_REGISTRY", str(tmp_path / "elsewhere"))
    registry = Registry.open(None)
    assert registry.root == tmp_path / "elsewhere"
    for read in (registry.names, registry.versions, registry.resolve, lambda: registry.promote("a:1")):
        with pytest.raises(NotFoundError, match=r"no registry at .*elsewhere.*cilseg train.*CILSEG_REGISTRY"):
            read()
    assert not registry.root.exists()


def test_what_is_no_registry(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Registry.open(tmp_path / "file")
    with pytest.raises(InputError, match=r"'mysql://ann:\*\*\*@host/db': give a folder, or postgresql://USER"):
        Registry.open("mysql://ann:secret@host/db")
    with pytest.raises(InputError, match=r"s3:// can hold the files of a registry: cilseg migrate --store s3://b/r"):
        Registry.open("s3://b/r")
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(InputError, match=r"not empty \(it holds b, file\)"):
        Registry.open(tmp_path).register("a", bundle)


# Damaged input


@on_local_files
def test_truncated_checkpoint_is_refused(registry: Registry, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    os.truncate(bundle / "checkpoint.safetensors", 100)
    (bundle / "labels.txt").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)2 faults.*checkpoint.safetensors has .*\(100 bytes\).*labels.txt is"):
        registry.register("animals", bundle)
    assert list((registry.root / "tmp").iterdir()) == []
    assert list((registry.root / "versions").iterdir()) == []


@pytest.mark.parametrize("bad", ["../evil", "/etc/passwd", "attachments/gate.json", "a/../../b", "manifest.json"])
def test_manifest_cannot_reach_outside(registry: Registry, tmp_path: Path, bad: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    content = json.loads((bundle / "manifest.json").read_text())
    content["files"][bad] = "sha256:" + "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="is no file name of a bundle"):
        registry.register("animals", bundle)


def test_no_bundle(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no bundle"):
        registry.register("animals", tmp_path)


@on_local_files
def test_damage_in_the_store_is_found_and_healed_by_registering_again(registry: Registry, tmp_path: Path) -> None:
    one, two = registered(registry, tmp_path, 2)
    registry.attach(one, "model.onnx", b"graph", kind="onnx")
    for name in ("checkpoint.safetensors", "manifest.json"):
        (one.path / name).chmod(0o644)
    (one.path / "checkpoint.safetensors").write_bytes(b"rot")
    with pytest.raises(ArtifactError, match=r"checkpoint.safetensors has"):
        registry.promote("animals:1")
    manifest = (one.path / "manifest.json").read_text()
    (one.path / "manifest.json").write_text(manifest.replace("supervised", "other"))
    with pytest.raises(ArtifactError, match="was changed after registration"):
        _ = registry.resolve("animals:1").manifest
    healed = registry.register("animals", tmp_path / "bundle-animals-0")
    assert healed.number == 1
    assert registry.promote("animals:1").to_number == 1
    assert registry.attachment(healed, "model.onnx").path.read_bytes() == b"graph"
    assert registry.promote(two.ref).to_number == 2


@on_local_files
def test_disk_full_leaves_everything_as_it_was(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = registered(registry, tmp_path, 1)
    bundle = make_bundle(tmp_path / "b", seed=5)
    before = _tree(registry.root)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            registry.register("animals", bundle)
        with pytest.raises(OSError, match="No space left"):
            registry.attach(one, "model.onnx", b"graph", kind="onnx")
    assert _tree(registry.root) == before
    assert registry.register("animals", bundle).number == 2


@on_local_files
def test_event_log_that_cannot_be_written_is_completed_later(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registered(registry, tmp_path, 2)
    log = registry.root / "events.jsonl"
    before = log.read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        registry.promote("animals:1")
    assert "completed on next use" in caplog.text
    log.write_text(before + '{"schema":"cilseg.eve')  # what a kill in the middle of the line leaves
    assert reopened(registry).resolve("animals@production").number == 1
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["sequence"] for row in rows] == [1, 2, 3]
    assert (rows[2]["action"], rows[2]["alias"], rows[2]["number"]) == ("promote", "production", 1)


@on_local_files
def test_stale_temporary_files_are_removed(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    old, young = registry.root / "tmp" / "old", registry.root / "tmp" / "young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old / "part", old):
        os.utime(path, (two_days_ago, two_days_ago))
    registry.register("animals", make_bundle(tmp_path / "b", seed=3))
    assert not old.exists()
    assert young.exists()


# The database


@on_folder
def test_events_cannot_be_changed(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    with sqlite3.connect(registry.root / "registry.db") as connection:
        for statement in ("DELETE FROM events", "UPDATE events SET who = 'nobody'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    connection.close()


@on_folder
def test_a_lock_held_too_long_is_a_conflict_and_readers_do_not_wait(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    blocker = sqlite3.connect(registry.root / "registry.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    impatient = reopened(registry, lock_timeout_s=0.2)
    with pytest.raises(ConflictError, match=r"Another process has been writing to .* for more than 0.2 s"):
        impatient.promote("animals:1")
    assert impatient.resolve("animals").number == 1
    blocker.execute("ROLLBACK")
    blocker.close()
    assert impatient.promote("animals:1").moved


@on_folder
def test_a_registry_that_may_only_be_read(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(registry, tmp_path, 1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    mounted = reopened(registry)
    assert mounted.resolve("animals").manifest.seed == 0
    with pytest.raises(InputError, match=r"cannot be opened for this .*readonly.*Check the permissions"):
        mounted.promote("animals:1")


@on_folder
def test_schema_of_a_newer_cilseg(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    with sqlite3.connect(registry.root / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.close()
    fresh = reopened(registry)
    for use in (fresh.names, lambda: fresh.register("animals", tmp_path / "bundle-animals-0")):
        with pytest.raises(ArtifactError, match="registry schema 0099, this cilseg knows 0002 and older"):
            use()


@on_folder
def test_lost_or_damaged_database_is_rebuilt_from_the_log(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    registered(registry, tmp_path, 1, name="street")
    for ref in ("animals:1", "animals:3", "street:1"):
        registry.promote(ref, why="because")
    registry.rollback("animals")
    versions, history = registry.versions(), registry.history("animals")
    database = registry.root / "registry.db"

    database.unlink()
    with pytest.raises(
        ArtifactError, match=r"The database of .* is missing, but .* knows 8 events.*cilseg fsck --rebuild"
    ):
        reopened(registry).names()
    with pytest.raises(ArtifactError, match=r"fsck --rebuild"):
        reopened(registry).register("animals", tmp_path / "bundle-animals-0")
    assert Registry.rebuild(registry.address.database_url or registry.root) == 8

    database.write_bytes(b"rot" * 5000)
    with pytest.raises(ArtifactError, match=r"is damaged .*fsck --rebuild"):
        reopened(registry).names()
    assert Registry.rebuild(registry.address.database_url or registry.root) == 8
    rebuilt = reopened(registry)
    assert (rebuilt.versions(), rebuilt.history("animals")) == (versions, history)
    assert rebuilt.promote("animals:2").sequence == 9
    assert rebuilt.rollback("animals").to_number == 1


@on_folder
def test_database_older_than_the_log_is_noticed(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1)
    old = (registry.root / "registry.db").read_bytes()
    registry.promote("animals:1")
    for part in registry.root.glob("registry.db-*"):
        part.unlink()
    (registry.root / "registry.db").write_bytes(old)
    with pytest.raises(ArtifactError, match=r"knows 2 events, the database .* only 1: the database is older"):
        reopened(registry).names()


@on_local_files
def test_damaged_log_is_not_rebuilt_from(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 3)
    log = registry.root / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[2])
    with pytest.raises(ArtifactError, match=r"line 2: .*sequence 3, expected 2"):
        Registry.rebuild(registry.address.database_url or registry.root)
    assert len(reopened(registry).versions()) == 3


def test_importing_the_registry_is_light() -> None:
    code = "import sys, cilseg.registry; sys.exit(bool({'torch', 'sqlalchemy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else b""
        for p in root.rglob("*")
        if not p.name.endswith(("-shm", "-wal"))
    }
