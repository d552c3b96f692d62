"""Small bundles for the registry's tests: real manifests and hashes, a few bytes of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cilseg.bundle import Architecture, Manifest, Preprocessing, write_manifest
from cilseg.classes import ClassSet
from cilseg.registry import Registry, Version

on_folder = pytest.mark.parametrize("registry", ["folder"], indirect=True)
"""For tests that look into the folder of an embedded registry."""
on_local_files = pytest.mark.parametrize(
    "registry", ["folder", pytest.param("postgres", marks=pytest.mark.systems)], indirect=True
)
"""For tests that damage or list files of a store in a folder, whatever the database."""
BASE = ClassSet.base(["cat", "dog"])


def make_bundle(
    folder: Path, *, seed: int = 0, classes: ClassSet = BASE, parent: str | None = None, size: int = 2000
) -> Path:
    """Write a bundle that differs from others by ``seed``; return its folder."""
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(bytes([seed % 256]) * size)
    (folder / "labels.txt").write_text("\n".join(classes.names) + "\n")
    (folder / "README.md").write_text("# a model\n")
    (folder / "training").mkdir()
    (folder / "training" / "log.jsonl").write_text('{"epoch": 1}\n')
    manifest = Manifest(
        classes=classes.to_json(),
        architecture=Architecture(
            backbone="none",
            output_stride=16,
            head_channels=8,
            head_dilations=(1,),
            classes_per_step=classes.sizes,
        ),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        method="wilson" if parent else "supervised",
        parent=parent,
        seed=seed,
        created_at="2026-01-01T00:00:00Z",
    )
    write_manifest(folder, manifest)
    return folder


def registered(registry: Registry, tmp_path: Path, count: int, *, name: str = "animals") -> list[Version]:
    """Register ``count`` parentless versions of ``name``."""
    return [
        registry.register(name, make_bundle(tmp_path / f"bundle-{name}-{i}", seed=i), who="ann") for i in range(count)
    ]


def attach_gate(registry: Registry, version: Version, verdict: str) -> None:
    registry.attach(version, "gate.json", json.dumps({"verdict": verdict}).encode(), kind="gate")


def reopened(registry: Registry, *, lock_timeout_s: float = 30.0) -> Registry:
    """Return the same registry as another process would see it."""
    return Registry(registry.address, lock_timeout_s=lock_timeout_s)
