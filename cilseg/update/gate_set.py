"""The gate set as a thing to be trusted: the same images as recorded, not trained on, and how often it was used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cilseg.bundle import GateSet, hash_file
from cilseg.data.source import Source, open_source
from cilseg.errors import FaultCollector, InputError, NotFoundError
from cilseg.evaluate.bootstrap import rarest_class
from cilseg.registry import Registry, Version

GATE_JSON = "gate.json"
TRAINING_IMAGES = "training_images.txt"
"""File of a bundle: a hash of the content of every image that the version was trained on, sorted, one a line."""
_HASH_CHARACTERS = 32
_SHOWN = 5


def open_gate_set(gate_set: GateSet) -> Source:
    """Open the images that a gate set names and check that they are still the same list.

    Raises:
        InputError: the list of images changed since the version was made.
        NotFoundError: the folder is gone.
    """
    layout = gate_set.layout
    source = open_source(gate_set.root, split=gate_set.split, layout=layout, label_names=gate_set.label_names)  # type: ignore[arg-type]
    actual = source.fingerprint()["ids_sha256"]
    if actual != gate_set.ids_sha256:
        raise InputError(
            f"The gate set {gate_set.root} ({gate_set.split}) lists other images than when the version was made. "
            "Restore its list file, or judge on the new list on purpose: cilseg validate REF --data DIR --split SPLIT."
        )
    return source


def image_hashes(files: Iterable[Path]) -> list[str]:
    """Return a hash of the content of each image file (128 bits of SHA-256, hexadecimal)."""
    return [hash_file(path).removeprefix("sha256:")[:_HASH_CHARACTERS] for path in files]


def training_list(files: Iterable[Path]) -> str:
    """Return the content of :data:`TRAINING_IMAGES` for these image files."""
    return "".join(f"{digest}\n" for digest in sorted(set(image_hashes(files))))


def trained_on(registry: Registry, version: Version) -> dict[str, str]:
    """Return hash -> version for every image that ``version`` or an ancestor in this registry was trained on.

    Versions made before the hashes were recorded add nothing.
    """
    found: dict[str, str] = {}
    for ancestor in lineage_of(registry, version):
        path = ancestor.path / TRAINING_IMAGES
        if TRAINING_IMAGES in ancestor.manifest.files and path.is_file():
            found.update(dict.fromkeys(path.read_text(encoding="ascii").split(), ancestor.ref))
    return found


def lineage_of(registry: Registry, version: Version) -> Iterator[Version]:
    """Yield ``version``, its parent, and so on, as far as this registry knows them."""
    current: Version | None = version
    while current is not None:
        yield current
        parent = current.manifest.parent
        try:
            current = registry.resolve(parent) if parent is not None else None
        except NotFoundError:
            return


def check_unseen(source: Source, trained: dict[str, str]) -> None:
    """Refuse a gate set that holds images of the training data, compared by content.

    Args:
        source: the gate set.
        trained: hash of the content -> where it was trained on.

    Raises:
        InputError: some images of the gate set were trained on; they are named.
    """
    if not trained:
        return
    faults = FaultCollector(f"Gate set {source.root} ({source.split})", limit=_SHOWN)
    for name, digest in zip(source.ids, image_hashes(source.image_paths), strict=True):
        if digest in trained:
            faults.add(f"image {name!r} was trained on ({trained[digest]})")
    faults.raise_if_any(
        "A model looks better than it is on images it was trained on, so these cannot judge it. Take them out of the "
        "gate set, or judge on other images: cilseg validate REF --data DIR --split SPLIT."
    )


def count_attempts(registry: Registry, candidate: Version, *, ids_sha256: str) -> int:
    """Return which candidate of its name this is on a gate set: one more than the others judged there."""
    others = 0
    for version in registry.versions(candidate.name):
        if version.number == candidate.number or version.manifest.parent is None:
            continue
        report = registry.attachments(version).get(GATE_JSON)
        others += report is not None and report.metadata.get("gate_set") == ids_sha256
    return others + 1


def halves(source: Source) -> tuple[list[str], list[str]]:
    """Split a gate set into two halves with about equally many images of every class; the same ones every time.

    Images are dealt out in turn, class by class (the rarest class each shows), in the order of a hash of their id.
    """
    tags = source.tags()
    names = sorted({name for tag in tags for name in tag})
    present = np.array([[name in tag for name in names] for tag in tags], dtype=np.bool_).reshape(len(tags), len(names))
    strata = rarest_class(present) if names else np.zeros(len(tags), dtype=np.int64)
    order = sorted(range(len(source)), key=lambda i: (int(strata[i]), _shuffled(source.ids[i])))
    first, second = set(order[0::2]), set(order[1::2])
    return _named(source.ids, first), _named(source.ids, second)


def _named(ids: Sequence[str], rows: set[int]) -> list[str]:
    return [name for i, name in enumerate(ids) if i in rows]


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
