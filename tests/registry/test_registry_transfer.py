"""push and pull: one file for sites without a network, and from registry to registry."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from registry_bundles import BASE, attach_gate, make_bundle, registered, reopened

from cilseg.errors import ArtifactError, ConflictError, InputError, NotFoundError
from cilseg.registry import Registry, Version
from cilseg.registry.check import check_registry
from cilseg.registry.transfer import pull, push


@pytest.fixture
def version(registry: Registry, tmp_path: Path) -> Version:
    """A child of a base version with a verdict and an exported model."""
    (base,) = registered(registry, tmp_path, 1)
    bundle = make_bundle(tmp_path / "child", seed=7, classes=BASE.extend(["cow"], step=1), parent=base.digest)
    child = registry.register("animals", bundle)
    attach_gate(registry, child, "PROMOTE")
    registry.attach(child, "model.onnx", b"graph", kind="onnx", metadata={"parity": {"passed": True}})
    return child


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "other")


def test_one_file_there_and_back(registry: Registry, version: Version, other: Registry, tmp_path: Path) -> None:
    sent = push(registry, version.ref, tmp_path / "a.tar")
    assert (sent.source, sent.digest, sent.attachments) == ("animals:2", version.digest, ("gate.json", "model.onnx"))
    got = pull(other, tmp_path / "a.tar", who="bob")
    assert (got.source, got.target) == ("animals:2", "animals:1")
    arrived = other.resolve("animals:1")
    assert arrived.digest == version.digest
    assert arrived.manifest == version.manifest
    model = other.attachment(arrived, "model.onnx")
    assert (model.path.read_bytes(), model.metadata) == (b"graph", {"parity": {"passed": True}})
    assert other.promote("animals:1").moved  # the verdict came with it
    assert other.store.read_events()[0]["why"] == "pulled from animals:2 in a.tar"
    assert other.store.read_events()[0]["who"] == "bob"
    assert check_registry(other).faults == ()
    assert pull(other, tmp_path / "a.tar").target == "animals:1"  # again: nothing new
    assert len(other.versions()) == 1


def test_between_registries_both_ways(registry: Registry, version: Version, other: Registry, tmp_path: Path) -> None:
    assert push(registry, version.ref, other, name="street").target == "street:1"
    assert other.resolve("street:1").digest == version.digest
    third = Registry.open(tmp_path / "third")
    assert pull(third, other, "street").target == "street:1"
    assert pull(registry, other, "street", name="zoo").target == "zoo:1"
    assert check_registry(reopened(registry)).faults == ()
    assert list(third.attachments(third.resolve("street"))) == ["gate.json", "model.onnx"]
    with pytest.raises(ConflictError, match="is both source and target"):
        push(registry, version.ref, reopened(registry))
    with pytest.raises(NotFoundError, match=r"no model 'stret'.*Did you mean 'street'"):
        pull(third, other, "stret")


def test_attachments_that_differ_are_kept_unless_told(registry: Registry, version: Version, other: Registry) -> None:
    push(registry, version.ref, other)
    registry.attach(version, "model.onnx", b"graph 2", kind="onnx")
    again = push(registry, version.ref, other)
    assert (again.attachments, again.kept) == ((), ("model.onnx",))
    arrived = other.resolve("animals:1")
    assert other.attachment(arrived, "model.onnx").path.read_bytes() == b"graph"
    replaced = push(registry, version.ref, other, replace=True)
    assert (replaced.attachments, replaced.kept) == (("model.onnx",), ())
    assert other.attachment(arrived, "model.onnx").path.read_bytes() == b"graph 2"


def test_any_tar_reads_a_package(registry: Registry, version: Version, tmp_path: Path) -> None:
    push(registry, version.ref, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
        index = json.load(archive.extractfile("package.json"))  # type: ignore[arg-type]
    assert names[:2] == ["package.json", "manifest.json"]
    assert {"files/checkpoint.safetensors", "files/training/log.jsonl", "attachments/model.onnx"} <= set(names)
    assert index["files"]["labels.txt"]["sha256"] == version.manifest.files["labels.txt"]


def test_the_same_content_gives_the_same_bytes(registry: Registry, version: Version, tmp_path: Path) -> None:
    push(registry, version.ref, tmp_path / "a.tar")
    before = (tmp_path / "a.tar").read_bytes()
    push(registry, version.ref, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == before
    push(registry, version.ref, tmp_path / "a.tar")  # there already, and the same
    (tmp_path / "c.tar.part").write_bytes(before[: len(before) // 2])  # what a killed push left
    push(registry, version.ref, tmp_path / "c.tar")
    assert (tmp_path / "c.tar").read_bytes() == before
    (tmp_path / "d.tar.part").write_bytes(b"x" * (2 * len(before)))  # something else
    push(registry, version.ref, tmp_path / "d.tar")
    assert (tmp_path / "d.tar").read_bytes() == before
    with pytest.raises(ConflictError, match=r"a.tar is there already and holds something else"):
        push(registry, "animals:1", tmp_path / "a.tar")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no tar", "other tar", "missing"])
def test_damaged_packages(registry: Registry, version: Version, other: Registry, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.tar"
    push(registry, version.ref, path)
    data = path.read_bytes()
    place = data.index(bytes([7]) * 100)  # the weights
    expected: tuple[type[Exception], str]
    if damage == "cut":
        path.write_bytes(data[: place + 200])
        expected = (ArtifactError, "cut off")
    elif damage == "flipped":
        path.write_bytes(data[:place] + b"\x08" + data[place + 1 :])
        expected = (ArtifactError, r"checkpoint.safetensors has .*, expected")
    elif damage == "no tar":
        path.write_bytes(b"no tar at all" * 100)
        expected = (ArtifactError, r"is no package or was cut off .*\(|is no package")
    elif damage == "other tar":
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "child" / "labels.txt", "labels.txt")
        expected = (InputError, "is a tar, but no package")
    else:
        path.unlink()
        expected = (InputError, "There is no file")
    with pytest.raises(expected[0], match=expected[1]):
        pull(other, path)
    assert not (other.root / "events.jsonl").exists()
    assert not list(other.root.glob("versions/*"))


def test_a_damaged_version_is_not_sent(tmp_path: Path) -> None:
    registry, other = Registry.open(tmp_path / "registry"), Registry.open(tmp_path / "other")
    (one,) = registered(registry, tmp_path, 1)
    (one.path / "labels.txt").chmod(0o644)
    (one.path / "labels.txt").write_text("rot")
    for target in (tmp_path / "a.tar", other):
        with pytest.raises(ArtifactError, match=r"labels.txt (is damaged|has)"):
            push(registry, "animals:1", target)
    assert not list(tmp_path.glob("*.tar*"))


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    registry = Registry.open(tmp_path / "registry", progress=lambda *told: seen.append(told))
    registry.register("animals", make_bundle(tmp_path / "big", size=9 << 20))
    weights = [told for told in seen if told[0] == "checkpoint.safetensors"]
    assert [done for _, done, _ in weights] == [4 << 20, 8 << 20, 9 << 20]
    assert {total for _, _, total in weights} == {9 << 20}
