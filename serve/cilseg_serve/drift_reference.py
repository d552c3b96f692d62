"""The reference that drift is measured against: what a version answered on its gate set, kept as an attachment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cilseg.errors import ArtifactError, CilsegError, InputError, NotFoundError
from cilseg.registry import Registry, Version
from cilseg_serve.drift import FEATURES, Observations, gather, observe
from cilseg_serve.images import read_image
from cilseg_serve.segmenter import Segmenter

ATTACHMENT = "drift.json"
SCHEMA = "cilseg.drift/1"
CONFUSIONS = "confusions.npz"
"""Attachment of ``cilseg validate``: per-image confusion matrices, from which the class mix is known without images."""
MAX_IMAGES = 1000
OnImage = Callable[[int, int], None]


def observe_files(
    segmenter: Segmenter, files: Sequence[Path], *, on_image: OnImage | None = None
) -> tuple[Observations, tuple[tuple[Path, str], ...]]:
    """Run ``segmenter`` over image files; return what was seen, and the files that could not be read.

    Of more than 1,000 files, 1,000 at equal distances are taken.

    Raises:
        InputError: no file could be read.
    """
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), MAX_IMAGES)).astype(int)]
    found: list[Observations] = []
    failures: list[tuple[Path, str]] = []
    for done, file in enumerate(chosen, start=1):
        try:
            image = read_image(file)
            found.append(observe(image, segmenter.segment(image, confidence=segmenter.has_confidence)))
        except InputError as error:
            failures.append((file, str(error)))
        if on_image is not None:
            on_image(done, len(chosen))
    if not found:
        raise InputError(
            f"None of the {len(files)} images could be read. The first: {failures[0][1] if failures else ''}"
        )
    return gather(found), tuple(failures)


def save_reference(registry: Registry, version: Version, seen: Observations) -> None:
    """Attach ``seen`` to ``version`` as its reference.

    Raises:
        CilsegError: see :meth:`cilseg.registry.Registry.attach`.
    """
    content = {"schema": SCHEMA, "source": "gate set", **seen.to_json()}
    registry.attach(version, ATTACHMENT, json.dumps(content).encode(), kind="drift")


def load_reference(registry: Registry, version: Version) -> Observations | None:
    """Return the reference of ``version``: the attachment, else the class mix of its last evaluation, else None.

    Raises:
        ArtifactError: the attachment is damaged.
    """
    try:
        path = registry.attachment(version, ATTACHMENT).path
    except NotFoundError:
        return _from_confusions(registry, version)
    try:
        return Observations.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{ATTACHMENT} of {version.ref} cannot be read ({error!r}). Make it again: cilseg drift {version.ref}"
        ) from error


def _from_confusions(registry: Registry, version: Version) -> Observations | None:
    """Return the shares of predicted pixels per image; annotated pixels only, neither confidence nor features."""
    names = version.manifest.class_set.names
    try:
        path = registry.attachment(version, CONFUSIONS).path
        with np.load(path, allow_pickle=False) as stored:
            predicted = np.asarray(stored["confusions"], dtype=np.float64).sum(axis=1)
    except (CilsegError, OSError, ValueError, KeyError):
        return None
    if predicted.ndim != 2 or predicted.shape[1] != len(names):
        return None
    shares = predicted / np.maximum(predicted.sum(axis=1, keepdims=True), 1)
    return Observations(names, shares, np.full(len(shares), np.nan), np.full((len(shares), len(FEATURES)), np.nan))
