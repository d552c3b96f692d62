"""What a step is given to learn from: every input checked against its method before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cilseg.classes import ClassSet
from cilseg.config import Config
from cilseg.data.annotations import POINT_RADIUS_PX, paint_points, read_prior, read_scribble
from cilseg.data.check import check_images, check_source
from cilseg.data.image_folders import matching_files, negative_files, open_image_folders, priors_in, read_saliency_of
from cilseg.data.source import Source, open_source
from cilseg.data.taglist import TagList, check_trainable, load_tag_list
from cilseg.errors import FaultCollector, InputError, did_you_mean
from cilseg.methods import Method, Replay, StepInputs, Supervision, method_class
from cilseg.methods.base import BUILTIN, PriorReader
from cilseg.registry import Version
from cilseg.train.dataset import ImageReader, TrainingSet
from cilseg.train.memory import stored_memory
from cilseg.train.steps import masked_set, read_prepared, tagged_set
from cilseg_serve.images import read_image


@dataclass(frozen=True)
class UpdateRequest:
    """What ``cilseg update`` is asked for; which fields are used depends on what the method learns from.

    ``tags`` for tag, point and scribble methods; ``data`` and ``classes`` for methods that learn from masks; ``shots``
    beside them for few-shot methods. ``replay`` and ``saliency`` for the methods that need them,
    ``prior_masks`` for those that use priors.
    """

    config: Config
    parent: str | None = None
    tags: Path | None = None
    image_root: Path | None = None
    untagged: str | None = None
    negatives: Path | None = None
    """Folder of images that show no new class, beside those of ``tags``."""
    data: Path | None = None
    split: str = "train"
    labels: str | None = None
    classes: Sequence[str] = ()
    shots: int | None = None
    """Annotated images per new class."""
    replay: Path | None = None
    """Folder with one folder of images per old class."""
    saliency: str | None = None
    """Folder with one grey picture per image, or ``builtin``."""
    prior_masks: str | None = None
    """Folder with PNGs of where new classes may be, named like the images."""
    name: str | None = None
    """Register the result under another name than the parent's."""
    gate: bool = True
    """Ask the gate afterwards; else the candidate is registered unjudged."""
    on_regression: Literal["keep", "fuse"] = "keep"
    """``fuse``: a candidate that is not promoted is fused with its parent and judged again."""
    resume: bool = False


@dataclass(frozen=True)
class Material:
    """A checked request: what is trained on, and what it is recorded as."""

    parent: Version
    class_set: ClassSet
    data: TrainingSet
    identity: dict[str, Any]
    """What makes the run the same run, beside parent, settings and seed."""
    fingerprint: dict[str, Any]
    images: tuple[Path, ...]
    """Files that are learned from."""
    tag_list: TagList | None = None
    inputs: StepInputs = field(default_factory=StepInputs)


_FROM_TAGS: tuple[Supervision, ...] = ("tags", "points", "scribbles")
_MASKS = "With masks, use --method masks, mib or joint, --data DIR and --classes NEW,..."
_TAGS = "With image tags only, use --method tags --tags FILE."


def gather(parent: Version, request: UpdateRequest) -> Material:
    """Check everything that ``request`` gives against its method and the parent, and return it ready for training.

    Raises:
        InputError: supervision or inputs that the method does not take or lacks, faults of tags, images, masks.
    """
    method = method_class(request.config.update.method)
    check_supervision(request, method)
    material = (
        _from_tag_list(parent, request, method)
        if method.supervision in _FROM_TAGS
        else _from_masks(parent, request, method)
    )
    return _with_inputs(material, request)


def check_supervision(request: UpdateRequest, method: type[Method]) -> None:
    """Compare what is given with what the method learns from and needs.

    Raises:
        InputError: everything that is missing or too much, and what would work instead.
    """
    faults = FaultCollector(f"Method {method.name!r} learns from {method.supervision}")
    from_tags = method.supervision in _FROM_TAGS
    if from_tags:
        if request.tags is None:
            faults.add('give --tags FILE ({"a.jpg": ["cow"], "b.jpg": []} is a valid file)')
        if request.data is not None or request.classes:
            faults.add("it takes no --data and no --classes: it never sees masks, and the tag list names its classes")
    else:
        if request.tags is not None:
            faults.add("it takes no --tags")
        if request.negatives is not None:
            faults.add("it takes no --negatives; its masks show what is absent")
        if request.data is None:
            faults.add("give --data DIR (images and masks)")
        if not request.classes:
            faults.add("give --classes NEW,... (what to learn from the masks)")
    if method.supervision == "shots":
        if request.shots is None or request.shots < 1:
            faults.add(f"give --shots K, the number of annotated images per new class, 1 or more (got {request.shots})")
    elif request.shots is not None:
        faults.add("it takes no --shots; with a few annotated images per class use --method pifs")
    if "replay" in method.needs and request.replay is None:
        faults.add(
            "it needs images that stand in for the old classes: give --replay DIR with one folder of images per old "
            "class (DIR/cat/1.jpg ...); without any, mib and plop learn from the same masks"
        )
    if "replay" not in method.needs and request.replay is not None:
        faults.add("it takes no --replay; recall does")
    if "saliency" in method.needs and request.saliency is None:
        faults.add(
            "it needs to know where objects are: give --saliency DIR (a grey PNG per image, of the same name), or "
            "--saliency builtin to make the maps from the parent's own features; without them use tags or cam"
        )
    if "saliency" not in method.needs and request.saliency is not None:
        faults.add("it takes no --saliency; eps does")
    if not method.uses_priors and request.prior_masks is not None:
        faults.add("it takes no --prior-masks; tags does")
    faults.raise_if_any(_MASKS if from_tags else _TAGS)


def check_tags(parent: Version, request: UpdateRequest) -> TagList:
    """Return the tag list of ``request``, checked against the parent; every image of it was decoded."""
    assert request.tags is not None
    tag_list = load_tag_list(
        request.tags, class_set=parent.manifest.class_set, image_root=request.image_root, untagged=request.untagged
    )
    if request.negatives is not None:
        tag_list = tag_list.with_negatives(negative_files(request.negatives))
    check_images([image.file for image in tag_list.images], what=f"Tag list {tag_list.path}")
    return tag_list


def _from_tag_list(parent: Version, request: UpdateRequest, method: type[Method]) -> Material:
    tag_list = check_tags(parent, request)
    annotations = None
    if not tag_list.new_classes and not method.refines:
        raise InputError(
            f"Tag list {tag_list.path} brings no new class, and {method.name} learns new classes only. Tag one, or use "
            "--method tags, which learns from tags of old classes too."
        )
    if method.supervision == "tags":
        check_trainable(tag_list)
    class_set = tag_list.extended(parent.manifest.class_set)
    if method.supervision != "tags":
        annotations = _annotations(tag_list, class_set, method.supervision)
    return Material(
        parent,
        class_set,
        tagged_set(
            tag_list,
            class_set,
            request.config.update.optimiser,
            seed=request.config.seed,
            preprocessing=parent.manifest.preprocessing,
            annotations=annotations,
        ),
        identity={
            "tags": tag_list.sha256,
            "files": [(image.file.name, image.file.stat().st_size) for image in tag_list.images],
            "untagged": tag_list.untagged,
        },
        fingerprint={"images": len(tag_list), "tags_sha256": tag_list.sha256, "untagged": tag_list.untagged},
        images=tuple(image.file for image in tag_list.images),
        tag_list=tag_list,
    )


def _annotations(tag_list: TagList, class_set: ClassSet, kind: Supervision) -> ImageReader:
    """Return the reader of the partial masks that points or scribbles make, after reading each of them once.

    Raises:
        InputError: a new class that no point or scribble shows, points outside their image, unusable scribbles.
    """
    faults = FaultCollector(f"Tag list {tag_list.path} as {kind}")
    read: ImageReader = partial(_point_mask if kind == "points" else _scribble_mask, tag_list, class_set)
    found: set[int] = set()
    for index in range(len(tag_list)):
        try:
            found |= set(np.unique(read(index)).tolist())
        except InputError as exc:
            faults.add(str(exc))
    for name in tag_list.new_names:
        if class_set.id_of(name) not in found:
            field_ = '"points": [[x, y, "' + name + '"]]' if kind == "points" else '"scribble": "FILE.png"'
            faults.add(f"new class {name!r} has no {kind[:-1]} in any image; add {field_} to images that show it")
    faults.raise_if_any("With image tags alone use --method tags.")
    return read


def _point_mask(tag_list: TagList, class_set: ClassSet, index: int) -> npt.NDArray[np.uint8]:
    image = tag_list.images[index]
    height, width = read_image(image.file).shape[:2]
    points = [
        (int(p.x_px), int(p.y_px), class_set.id_of(p.name))
        for p in image.points
        if p.name in tag_list.new_names or class_set.id_of(p.name) == 0
    ]
    try:
        return paint_points(points, height=height, width=width, radius=POINT_RADIUS_PX)
    except InputError as exc:
        raise InputError(f"{image.file.name}: {exc}") from exc


def _scribble_mask(tag_list: TagList, class_set: ClassSet, index: int) -> npt.NDArray[np.uint8]:
    image = tag_list.images[index]
    height, width = read_image(image.file).shape[:2]
    ids = [class_set.id_of(name) for name in tag_list.new_names]
    return read_scribble(image.scribble, class_ids=ids, height=height, width=width)


def _from_masks(parent: Version, request: UpdateRequest, method: type[Method]) -> Material:
    assert request.data is not None
    config, old = request.config, parent.manifest.class_set
    source = open_source(request.data, split=request.split, label_names=request.labels)
    named = [name for value, name in sorted(source.label_names.items()) if value]
    faults = FaultCollector("--classes")
    for name in request.classes:
        if name in old.names:
            faults.add(f"{name!r} is a class of {parent.ref} already; name only new ones")
        elif name not in named:
            faults.add(f"{name!r} is no class of {request.data}.{did_you_mean(name, named)}")
    faults.raise_if_any(f"The data names: {', '.join(named)}. {parent.ref} knows: {', '.join(old.foreground)}.")
    class_set = old.extend(list(request.classes), step=old.last_step + 1)
    check_source(source, class_set=class_set, needed=request.classes)
    if method.supervision == "shots":
        assert request.shots is not None
        source = few_shots(source, request.classes, request.shots)
    visible = class_set.foreground if method.sees_old_masks else tuple(request.classes)
    fingerprint = source.fingerprint()
    return Material(
        parent,
        class_set,
        masked_set(
            source,
            class_set,
            config.update.optimiser,
            visible=visible,
            seed=config.seed,
            preprocessing=parent.manifest.preprocessing,
        ),
        identity={"data": fingerprint, "classes": class_set.names},
        fingerprint=dict(fingerprint),
        images=source.image_paths,
    )


def few_shots(source: Source, classes: Sequence[str], shots: int) -> Source:
    """Return the first ``shots`` images of each class in the order of the list, as one source.

    Raises:
        InputError: a class with fewer images than that; every such class.
    """
    faults = FaultCollector(f"{shots} shots per class")
    chosen: list[str] = []
    for name in classes:
        rows = [i for i in range(len(source)) if name in source.classes_in(i)]
        if len(rows) < shots:
            faults.add(f"class {name!r} is in {len(rows)} of the {len(source)} images")
        chosen += [source.ids[i] for i in rows[:shots]]
    faults.raise_if_any("Ask for fewer shots or add annotated images.")
    return source.subset(dict.fromkeys(chosen))


def _with_inputs(material: Material, request: UpdateRequest) -> Material:
    """Add replay images, saliency maps, priors and what earlier steps left, and check them."""
    parent = material.parent
    replay: Replay | None = None
    saliency: Any = None
    identity, images = dict(material.identity), material.images
    if request.replay is not None:
        folders = open_image_folders(request.replay, classes=parent.manifest.class_set.foreground)
        check_images(folders.files, what=f"Replay folder {request.replay}")
        ids = [parent.manifest.class_set.id_of(name) for name in folders.names]
        reader = partial(read_prepared, folders.files, parent.manifest.preprocessing)
        replay = Replay(reader, np.array(ids, dtype=np.int64))
        images += folders.files
        identity["replay"] = [(file.name, file.stat().st_size) for file in folders.files]
    if request.saliency == BUILTIN:
        saliency = BUILTIN
    elif request.saliency is not None:
        assert material.tag_list is not None
        files = [image.file for image in material.tag_list.images]
        maps = matching_files(Path(request.saliency), files, what="saliency map")
        check_images(maps, what=f"Saliency folder {request.saliency}")
        saliency = partial(read_saliency_of, maps, files, parent.manifest.preprocessing.short_side_px)
        identity["saliency"] = [(file.name, file.stat().st_size) for file in maps]
    prior: Any = None
    if method_class(request.config.update.method).uses_priors:
        assert material.tag_list is not None
        prior, recorded = _prior(material.tag_list, request.prior_masks)
        identity |= {"prior": recorded} if recorded else {}
    memory = stored_memory(parent.path, parent.manifest.preprocessing)
    inputs = StepInputs(
        replay=replay,
        saliency=saliency,
        prior=prior,
        memory=memory,
        class_names=material.class_set.names,
        kept=parent.path,
    )
    return dataclasses.replace(material, identity=identity, images=images, inputs=inputs)


def _prior(tag_list: TagList, folder: str | None) -> tuple[Any, Any]:
    """Return what ``StepInputs.prior`` takes, each file read once, and what it is recorded as in the run's identity.

    Raises:
        InputError: priors in the list and ``--prior-masks`` too, or no class to label; unusable files, all of them.
    """
    files = tuple(image.prior for image in tag_list.images)
    if folder is not None:
        if any(files):
            raise InputError(
                f"Tag list {tag_list.path} names priors of its own: leave out --prior-masks, or take the field 'prior' "
                "out of the list."
            )
        if not tag_list.new_classes:
            raise InputError(f"Tag list {tag_list.path} brings no new class to label: leave out --prior-masks.")
        files = priors_in(Path(folder), [image.file for image in tag_list.images])
    if not any(files) or not tag_list.new_classes:
        return None, None
    read: PriorReader = partial(_read_prior, tag_list, files)
    faults = FaultCollector(f"Priors of {tag_list.path}")
    for index in range(len(tag_list)):
        try:
            read(index)
        except InputError as exc:
            faults.add(str(exc))
    faults.raise_if_any("Correct these files, or take them away: an image needs no prior.")
    return read, [(file.name, file.stat().st_size) if file else None for file in files]


def _read_prior(tag_list: TagList, files: Sequence[Path | None], index: int) -> npt.NDArray[np.uint8] | None:
    file = files[index]
    if file is None:
        return None
    height, width = read_image(tag_list.images[index].file).shape[:2]
    return read_prior(file, n_classes=len(tag_list.new_classes), height=height, width=width)
