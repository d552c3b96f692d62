"""Assemble the bundle directory of a trained model and register it."""

from __future__ import annotations

import logging
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cilseg.bundle import CHECKPOINT, LABELS, MODEL_CARD, GateSet, Manifest, verify_files, write_manifest
from cilseg.classes import ClassSet
from cilseg.config import Config
from cilseg.data.source import Source
from cilseg.methods.two_stage import PSEUDO_LABELS
from cilseg.models.build import load_model, save_weights
from cilseg.models.segmenter import SegmentationModel
from cilseg.registry import Registry, Version
from cilseg.train.engine import LOG_FILE, RESUME_FILE
from cilseg.train.environment import environment
from cilseg.train.steps import KEEP
from cilseg.update.gate_set import TRAINING_IMAGES, training_list

TAG_LIST_FILE = "tags.json"
PSEUDO_LABELS_FILE = "pseudo_labels.zip"
_LOGGER = logging.getLogger(__name__)
_STAGING = "bundle-"


def model_of(version: Version) -> SegmentationModel:
    """Return the model of a version in evaluation mode, after comparing the version's files with their hashes.

    Raises:
        ArtifactError: a file is missing, truncated or changed.
    """
    verify_files(version.path, version.manifest)
    return load_model(version.path, version.manifest)


def announce(run_dir: Path, *, resume: bool) -> None:
    """Log where a run that was asked to resume starts."""
    if resume and (run_dir / RESUME_FILE).is_file():
        _LOGGER.info("Going on with the run in %s.", run_dir)
    elif resume:
        _LOGGER.info("No interrupted run has these data and settings; starting at the beginning.")


def gate_set_of(source: Source) -> GateSet:
    """Describe an annotated split as the gate set of a version: every class that its labels name was annotated."""
    names = dict(source.label_names)
    return GateSet(
        root=str(source.root.resolve()),
        split=source.split,
        layout=source.layout,
        label_names=names,
        classes=tuple(name for value, name in sorted(names.items()) if value),
        ids_sha256=str(source.fingerprint()["ids_sha256"]),
    )


def register_bundle(
    registry: Registry,
    name: str,
    model: SegmentationModel,
    class_set: ClassSet,
    *,
    method: str,
    config: Config,
    data: dict[str, Any],
    gate_set: GateSet | None,
    run_dir: Path,
    images: Sequence[Path] = (),
    parent: Version | None = None,
    tag_list: Path | None = None,
) -> Version:
    """Write the bundle into a temporary directory beside the run and register it; return the version.

    ``images`` are the files it was trained on; hashes of their content go into the bundle.
    """
    for leftover in run_dir.glob(f"{_STAGING}*"):  # of a run that was killed while it registered
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=_STAGING) as temporary:
        directory = Path(temporary)
        save_weights(model, directory)
        (directory / LABELS).write_text("".join(f"{n}\n" for n in class_set.names), encoding="utf-8")
        shutil.copyfile(run_dir / LOG_FILE, directory / "train_log.jsonl")
        for file in sorted((run_dir / KEEP).iterdir()) if (run_dir / KEEP).is_dir() else ():
            shutil.copyfile(file, directory / file.name)
        if tag_list is not None:
            shutil.copyfile(tag_list, directory / TAG_LIST_FILE)
        if images:
            (directory / TRAINING_IMAGES).write_text(training_list(images), encoding="ascii")
        manifest = Manifest(
            classes=class_set.to_json(),
            architecture=model.architecture,
            preprocessing=model.preprocessing,
            method=method,
            parent=parent.digest if parent else None,
            config=config.model_dump(mode="json"),
            seed=config.seed,
            created_at=_finished_at(run_dir),
            environment=environment(),
            data=data,
            gate_set=gate_set,
        )
        (directory / MODEL_CARD).write_text(model_card(name, manifest, parent), encoding="utf-8")
        write_manifest(directory, manifest)
        return registry.register(name, directory)


def attach_pseudo_labels(registry: Registry, version: Version, run_dir: Path) -> None:
    """Attach the pseudo-labels that a two-stage method left in ``run_dir``, if it did, as one archive."""
    folder = run_dir / PSEUDO_LABELS
    if not folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=_STAGING) as temporary:
        path = Path(temporary) / PSEUDO_LABELS_FILE
        with zipfile.ZipFile(path, "w") as archive:  # PNGs are compressed already
            for file in sorted(folder.glob("*.png")):
                archive.write(file, file.name)
        registry.attach(version, PSEUDO_LABELS_FILE, path, kind="pseudo-labels")


def register_copy(
    registry: Registry,
    version: Version,
    model: SegmentationModel,
    *,
    parent: Version,
    data: dict[str, Any],
    directory: Path,
) -> Version:
    """Register ``model`` as a version that shares everything but the weights (and ``data``) with ``version``."""
    for name in version.manifest.files:
        if name not in (CHECKPOINT, MODEL_CARD):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(version.path / name, directory / name)
    save_weights(model, directory)
    manifest = version.manifest.model_copy(
        update={
            "method": f"{version.manifest.method}+fused",
            "parent": parent.digest,
            "data": {**version.manifest.data, **data},
            "files": {},
        }
    )
    (directory / MODEL_CARD).write_text(model_card(version.name, manifest, parent), encoding="utf-8")
    write_manifest(directory, manifest)
    return registry.register(version.name, directory)


def _finished_at(run_dir: Path) -> str:
    """When training ended (UTC); the same after a resume, so that registering a finished run again changes nothing."""
    stamp = (run_dir / RESUME_FILE).stat().st_mtime
    return datetime.fromtimestamp(stamp, UTC).isoformat(timespec="seconds")


def model_card(name: str, manifest: Manifest, parent: Version | None) -> str:
    """Return the README of a bundle."""
    classes = manifest.class_set
    rows = "".join(f"| {i} | {e.name} | {e.color} | {e.step} |\n" for i, e in enumerate(classes.entries))
    origin = f"Trained from {parent.ref} ({parent.digest})." if parent else "A base model: it has no parent."
    resize = manifest.preprocessing.short_side_px
    return (
        f"# {name}\n\nSemantic segmentation, {len(classes)} classes, method `{manifest.method}`, "
        f"seed {manifest.seed}, made {manifest.created_at}.\n{origin}\n\n"
        f"| id | class | colour | step |\n|---|---|---|---|\n{rows}\n"
        f"Input: RGB image, {f'shorter side resized to {resize} px' if resize else 'any size, not resized'}. "
        "255 is void in masks.\n\n"
        "Use: `cilseg predict IMAGE -o OUT --model REF`, or in Python:\n\n"
        '```python\nfrom cilseg_serve import Segmenter\n\nsegmenter = Segmenter("PATH OF THIS FOLDER")\n```\n'
    )
