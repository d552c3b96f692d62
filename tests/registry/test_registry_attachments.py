"""Attachments: hashed files beside a version."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from registry_bundles import make_bundle, on_local_files

from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg.registry import Registry, Version


@pytest.fixture
def version(registry: Registry, tmp_path: Path) -> Version:
    return registry.register("animals", make_bundle(tmp_path / "b"))


def test_attach_and_find(registry: Registry, version: Version, tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"onnx bytes")
    registry.attach(version, "model.onnx", tmp_path / "graph", kind="onnx", metadata={"metrics": {"agreement": 1.0}})
    registry.attach(version, "gate.json", b'{"verdict": "HOLD"}', kind="gate")
    assert list(registry.attachments(version)) == ["gate.json", "model.onnx"]
    found = registry.attachment(version, "model.onnx")
    assert found.path == version.path / "attachments" / "model.onnx"
    assert found.path.read_bytes() == b"onnx bytes"
    assert (found.kind, found.version_digest) == ("onnx", version.digest)
    assert found.metadata == {"metrics": {"agreement": 1.0}}
    sidecar = json.loads((version.path / "attachments" / "model.onnx.json").read_text())
    assert (sidecar["sha256"], sidecar["version_digest"]) == (found.sha256, version.digest)
    assert (tmp_path / "graph").exists()
    assert registry.resolve("animals:1").digest == version.digest  # attachments do not change the version


def test_replacing(registry: Registry, version: Version) -> None:
    old = registry.attach(version, "gate.json", b"old", kind="gate")
    new = registry.attach(version, "gate.json", b"new", kind="gate", metadata={"n": 2})
    assert registry.attachment(version, "gate.json") == new
    assert new.sha256 != old.sha256
    assert sorted(p.name for p in (version.path / "attachments").iterdir()) == ["gate.json", "gate.json.json"]
    assert list((registry.root / "tmp").iterdir()) == []


@on_local_files
def test_damage_is_found(registry: Registry, version: Version) -> None:
    path = registry.attach(version, "model.onnx", b"graph", kind="onnx").path
    path.chmod(0o644)
    path.write_bytes(b"gra")
    with pytest.raises(ArtifactError, match=r"'model.onnx' of animals:1 is damaged: it has .*\(3 bytes\)"):
        registry.attachment(version, "model.onnx")
    path.unlink()
    with pytest.raises(ArtifactError, match="the file is missing"):
        registry.attachment(version, "model.onnx")


@on_local_files
def test_an_attachment_of_another_version_is_refused(registry: Registry, version: Version, tmp_path: Path) -> None:
    other = registry.register("animals", make_bundle(tmp_path / "c", seed=1))
    registry.attach(version, "model.onnx", b"graph", kind="onnx")
    (version.path / "attachments").rename(other.path / "attachments")
    with pytest.raises(ArtifactError, match="not for this version"):
        registry.attachment(other, "model.onnx")


def test_missing_attachment_names_what_there_is(registry: Registry, version: Version) -> None:
    registry.attach(version, "model.onnx", b"graph", kind="onnx")
    with pytest.raises(NotFoundError, match=r"no attachment 'model.onx'. Did you mean 'model.onnx'\? It has: model.on"):
        registry.attachment(version, "model.onx")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "model.onnx.json"])
def test_bad_file_names(registry: Registry, version: Version, name: str) -> None:
    registry.attach(version, "model.onnx", b"graph", kind="onnx")
    with pytest.raises(InputError, match="Attachment name"):
        registry.attach(version, name, b"x", kind="other")


def test_a_missing_source_leaves_nothing(registry: Registry, version: Version, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        registry.attach(version, "model.onnx", tmp_path / "no", kind="onnx")
    assert registry.attachments(version) == {}
    assert list((registry.root / "tmp").iterdir()) == []


@on_local_files
@pytest.mark.parametrize("files_that_fit", [0, 1, 2])
def test_a_full_disk_leaves_the_attachment_as_it_was(
    registry: Registry, version: Version, monkeypatch: pytest.MonkeyPatch, files_that_fit: int
) -> None:
    old = registry.attach(version, "gate.json", b"old", kind="gate")
    synced: list[int] = []

    def full(handle: int) -> None:
        synced.append(handle)
        if len(synced) > files_that_fit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            registry.attach(version, "gate.json", b"new", kind="gate", metadata={"n": 2})
    assert registry.attachment(version, "gate.json") == old
    assert list((registry.root / "tmp").iterdir()) == []
