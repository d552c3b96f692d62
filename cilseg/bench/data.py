"""The data of a protocol: its sources, the classes in every image, the split into steps, and what masks say."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bench.config import ProtocolConfig, SourceConfig
from cilseg.bench.settings import Settings
from cilseg.bundle import write_file_atomically
from cilseg.classes import VOID_ID, ClassSet
from cilseg.config import configs_directory
from cilseg.data.labels import map_mask
from cilseg.data.protocol import Rule
from cilseg.data.scenes import generate_scenes
from cilseg.data.source import Source, open_source
from cilseg.errors import CilsegError, FaultCollector, NotFoundError

Array = npt.NDArray[np.uint8]
REAL_DATA = "CILSEG_REAL_DATA"


@dataclass(frozen=True)
class ProtocolData:
    """Opened sources of a protocol.

    Attributes:
        train: the source of each step.
        judges: name -> source of the judged images; the first gives the scores of the table.
        tags: per step the foreground classes in each training image of its source.
        withheld: ids that base training never sees.
    """

    config: ProtocolConfig
    train: tuple[Source, ...]
    judges: Mapping[str, Source]
    tags: tuple[tuple[frozenset[str], ...], ...]
    withheld: frozenset[str]

    @cached_property
    def class_set(self) -> ClassSet:
        """The classes of the last step."""
        return self.classes_until(len(self.config.step_sizes) - 1)

    def classes_until(self, step: int) -> ClassSet:
        """Return the class set of a model after ``step``."""
        protocol = self.config.protocol("overlap")
        classes = ClassSet.base(protocol.step_classes(0))
        for later in range(1, step + 1):
            classes = classes.extend(protocol.step_classes(later), step=later)
        return classes

    def rows(self, rule: Rule, step: int) -> tuple[int, ...]:
        """Return the positions of the training images of ``step`` in its source; the withheld ones are still there."""
        protocol, tags = self.config.protocol(rule), self.tags[step]
        rows = protocol.split(tags)[step]
        name = source_of(self.config, step)
        if step == 0 and self.config.data.sources[name].keep_empty:
            known = set(self.config.classes)
            rows = tuple(sorted({*rows, *(i for i, found in enumerate(tags) if not found & known)}))
        return rows

    def without_withheld(self, step: int, rows: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i in rows if self.train[step].ids[i] not in self.withheld)

    def withheld_rows(self, step: int) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.train[step].ids) if name in self.withheld)

    def fingerprint(self, step: int, rows: Sequence[int]) -> dict[str, Any]:
        """Return what identifies training images, their masks and their classes."""
        source, tags = self.train[step], self.tags[step]
        text = json.dumps([sorted(tags[i]) for i in rows])
        labels = {str(value): name for value, name in sorted(source.label_names.items())}
        return {
            **source.subset([source.ids[i] for i in rows]).fingerprint(),
            "labels": labels,
            "tags_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }


def source_of(config: ProtocolConfig, step: int) -> str:
    """Return the name of the source that ``step`` trains on."""
    return next(n for n, s in config.data.sources.items() if s.train and (s.steps is None or step in s.steps))


def located(
    config: ProtocolConfig, work: Path, *, data: Sequence[str] = (), withheld: str | None = None
) -> ProtocolConfig:
    """Return ``config`` with absolute folders.

    Args:
        config: as the file says.
        work: where generated scenes go.
        data: ``DIR`` for the only source, or ``NAME=DIR``.
        withheld: file of withheld ids, instead of the one that the protocol names.

    Raises:
        InputError: folders or files that are missing, ``data`` that names no source; all faults at once.
    """
    faults = FaultCollector(f"Data of protocol {config.name}")
    given: dict[str, str] = {}
    sources = config.data.sources
    for text in data:
        name, sign, folder = text.partition("=")
        if not sign and len(sources) > 1:
            faults.add(
                f"--data {text}: there are {len(sources)} sources, give NAME=DIR for each of {', '.join(sources)}"
            )
        elif not sign:
            given[next(iter(sources))] = text
        elif name not in sources:
            faults.add(f"--data {text}: no source is called {name!r}; sources: {', '.join(sources)}")
        else:
            given[name] = folder
    found = {name: _located_source(name, s, given.get(name), work, faults) for name, s in sources.items()}
    ids = config.data.withheld if withheld is None else withheld
    if isinstance(ids, str):
        places = [Path(ids), configs_directory().parent / ids]
        file = next((p for p in places if p.is_file()), None)
        if file is None:
            faults.add(f"no file {ids} of withheld ids here or in the checkout; give it with --withheld FILE")
        else:
            ids = str(file.absolute())
    faults.raise_if_any("Correct the folders, then try again.", error=NotFoundError)
    changed = config.data.model_copy(update={"sources": found, "withheld": ids})
    return config.model_copy(update={"data": changed})


def _located_source(
    name: str, source: SourceConfig, given: str | None, work: Path, faults: FaultCollector
) -> SourceConfig:
    if source.scenes is not None and given is None:
        return source.model_copy(update={"root": str((work / f"data-{name}").absolute())})
    base = os.environ.get(REAL_DATA)
    root = source.root or ""
    places = [Path(given)] if given else [*([Path(base) / root] if base else []), Path(root)]
    folder = next((p for p in places if p.is_dir()), None)
    if folder is None:
        tried = " or ".join(map(str, places))
        faults.add(f"source {name!r}: no folder {tried}; name it with --data DIR, or set {REAL_DATA} to the one above")
        folder = places[0]
    return source.model_copy(update={"root": str(folder.absolute()), "scenes": None})


def open_data(config: ProtocolConfig, work: Path) -> ProtocolData:
    """Open every source of a located protocol; scenes are generated first where they are missing.

    The classes in every training mask are read once and kept in ``work`` (``classes-*.json``).

    Raises:
        InputError: missing files, unreadable masks, unknown classes, withheld ids that no list has.
    """
    train: dict[str, Source] = {}
    judges: dict[str, Source] = {}
    for name, source in config.data.sources.items():
        root = Path(source.root or "")
        if source.scenes is not None:
            generate_scenes(
                root,
                train=source.scenes.train,
                val=source.scenes.val,
                size_px=source.scenes.size_px,
                seed=source.scenes.seed,
            )
        for role, split in ((train, source.train), (judges, source.val)):
            if split is not None:
                role[name] = open_source(root, split=split, layout=source.layout, label_names=source.labels)
    protocol = config.protocol("overlap")
    steps = [source_of(config, step) for step in range(protocol.n_steps)]
    known: set[str] = set()
    for opened in (*train.values(), *judges.values()):
        known |= set(opened.label_names.values())
    protocol.check_known(known)
    tags = {name: classes_in(train[name], work) for name in dict.fromkeys(steps)}
    return ProtocolData(
        config=config,
        train=tuple(train[name] for name in steps),
        judges=judges,
        tags=tuple(tags[name] for name in steps),
        withheld=_withheld(config, train[steps[0]], tags[steps[0]]),
    )


def _withheld(config: ProtocolConfig, source: Source, tags: Sequence[frozenset[str]]) -> frozenset[str]:
    wanted = config.data.withheld
    if wanted is None:
        return frozenset()
    faults = FaultCollector(f"Withheld images of {config.name}")
    protocol = config.protocol("overlap")
    first, later = set(protocol.step_classes(0)), set(config.classes) - set(protocol.step_classes(0))
    if isinstance(wanted, int):
        fitting = [name for name, found in zip(source.ids, tags, strict=True) if found & first and not found & later]
        if len(fitting) < wanted:
            faults.add(f"{wanted} asked for, but only {len(fitting)} training images show base classes alone")
        faults.raise_if_any("Lower data.withheld.")
        return frozenset(fitting[:wanted])
    ids = Path(wanted).read_text(encoding="utf-8").split()
    for name in ids:
        if name not in set(source.ids):
            faults.add(f"id {name!r} is not in the list {source.split!r} of {source.root}")
    faults.raise_if_any(f"Correct {wanted}, or give another file with --withheld.")
    return frozenset(ids)


def classes_in(source: Source, work: Path) -> tuple[frozenset[str], ...]:
    """Return the foreground classes in each mask of ``source``; kept in ``work`` for the next process.

    Raises:
        InputError: masks that cannot be used, all of them.
    """
    key = json.dumps([source.fingerprint(), sorted(source.label_names.items())], sort_keys=True)
    path = work / f"classes-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return tuple(frozenset(names) for names in json.loads(path.read_text(encoding="utf-8")))
    faults = FaultCollector(f"Masks of {source.root} ({source.split})")

    def read(index: int) -> frozenset[str]:
        try:
            return source.classes_in(index)
        except CilsegError as exc:
            faults.add(str(exc))
            return frozenset()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = tuple(pool.map(read, range(len(source))))
    faults.raise_if_any("Correct these masks, or take the images out of the list.")
    work.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, json.dumps([sorted(names) for names in found]).encode())
    return found


def label_table(
    label_names: Mapping[int, str],
    class_set: ClassSet,
    *,
    labelled: Collection[str],
    void: Collection[str] = (),
    void_pixels: Literal["void", "background"] = "void",
) -> Array:
    """Return ``(256,)`` uint8: mask value -> channel id; classes neither labelled nor void are background.

    Args:
        label_names: mask value -> class name.
        class_set: classes of the model or of the truth.
        labelled: classes that keep their label.
        void: classes that become void.
        void_pixels: what becomes of 255.
    """
    values = np.array([*label_names, VOID_ID], dtype=np.uint8)
    shown = [name for name in labelled if name in set(label_names.values())]
    table = np.zeros(256, dtype=np.uint8)
    table[values] = map_mask(
        values, label_names, class_set, visible=shown, void_as_background=void_pixels == "background"
    )
    for value, name in label_names.items():
        if name in void:
            table[value] = VOID_ID
    return table


def training_table(
    data: ProtocolData, step: int, *, settings: Settings, class_set: ClassSet, joint: bool = False
) -> Array:
    """Return the table of :func:`label_table` for the training masks of ``step``.

    ``joint`` gives every class seen so far its label.
    """
    protocol = data.config.protocol("overlap")
    seen, own = protocol.seen_classes(step), protocol.step_classes(step)
    old = [name for name in seen if name not in own]
    future = [name for name in data.config.classes if name not in seen]
    labelled = seen if joint or settings.train_old == "labelled" else own
    hidden = [*(future if settings.train_future == "void" else []), *(old if settings.train_old == "void" else [])]
    return label_table(
        data.train[step].label_names,
        class_set,
        labelled=labelled,
        void=[name for name in hidden if name not in labelled],
        void_pixels=settings.train_void,
    )


def truth_table(data: ProtocolData, judge: str, step: int) -> Array:
    """Return the table of :func:`label_table` for judged masks after ``step``, in ids of the last step's class set."""
    seen = data.config.protocol("overlap").seen_classes(step)
    unseen = [name for name in data.config.classes if name not in seen]
    policy = data.config.settings.test_unseen
    return label_table(
        data.judges[judge].label_names,
        data.class_set,
        labelled=data.config.classes if policy == "error" else seen,
        void=unseen if policy == "void" else (),
    )


def judged_view(image: Array, truth: Array, settings: Settings) -> tuple[Array, Array]:
    """Return image and truth as they are judged: resized to a short side and cropped to a central square, or as is.

    Sizes and offsets are those of torchvision's Resize and CenterCrop, which the published code uses; truth is resized
    by nearest pixel.
    """
    short = settings.eval_short_side_px
    if short is not None:
        height, width = truth.shape
        if min(height, width) != short:
            size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            truth = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))
    crop = settings.eval_crop_px
    if crop is not None:
        top, left = round((truth.shape[0] - crop) / 2.0), round((truth.shape[1] - crop) / 2.0)
        image, truth = image[top : top + crop, left : left + crop], truth[top : top + crop, left : left + crop]
    return np.ascontiguousarray(image), np.ascontiguousarray(truth)
