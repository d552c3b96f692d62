"""Generated scenes: seeded, textured pictures with exact masks, for the demo, the tests and the documentation.

A scene depends on (seed, split, index), its size and the classes alone, never on how many scenes are made. It is
bit-identical on one kind of processor with one version of numpy and Pillow; elsewhere a few pixels may differ slightly.
Objects are told by silhouette and texture (``scene_objects.py``): their colours, and those of the grounds
(``scene_grounds.py``), come from one palette.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.classes import BACKGROUND, ClassSet
from cilseg.data.scene_drawing import TAU, Bytes, Kind, Light, Pose, Rng, Stamp, cut_out, draw_inks, expose, put
from cilseg.data.scene_grounds import ground
from cilseg.data.scene_objects import CLUTTER, OBJECTS
from cilseg.errors import FaultCollector, InputError, did_you_mean

SCENE_CLASSES: tuple[str, ...] = tuple(OBJECTS)
"""The object classes in id order; background (id 0) is not among them."""

SCENES_JSON = "scenes.json"
SCHEMA = "cilseg.scenes/1"
MIN_SIDE_PX, MAX_SIDE_PX = 48, 4096
_MIN_VISIBLE_PX = 30
_MIN_VISIBLE_SHARE = 0.45
_MIN_RADIUS_PX = 7.5
_OBJECT_COUNT_ODDS = (0.15, 0.36, 0.34, 0.15)
_LAYOUT_TRIES = 40


def render_scene(
    seed: int,
    index: int,
    *,
    split: str = "train",
    size_px: int | tuple[int, int] = 128,
    classes: Sequence[str] | None = None,
) -> tuple[Bytes, Bytes]:
    """Render one scene.

    Args:
        seed: names the set of scenes; index: the scene within its split, from 0.
        split: any name; two splits share no scene.
        size_px: side of a square, or ``(height, width)``; objects scale with the shorter side.
        classes: the classes that may appear, a subset of :data:`SCENE_CLASSES`; default all. Mask value ``i`` is the
            ``i``-th of them, counted from 1; 0 is background.

    Returns:
        image ``(H, W, 3)`` uint8 RGB and mask ``(H, W)`` uint8. Every class in the mask shows at least 30 pixels,
        and every mask holds at least one class.

    Raises:
        InputError: an unknown or repeated class, a side outside 48-4096 px, a negative seed or index.
    """
    names, size_hw = _check_request(classes, size_px, {"seed": seed, "index": index})
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(split.encode()), index]))
    placed = _lay_out(rng, names, size_hw)
    light = Light.draw(rng)
    canvas = ground(rng, size_hw)
    mean_color = canvas.mean(axis=(0, 1))
    for kind, stamp in _scatter_clutter(rng, size_hw):
        put(canvas, kind, stamp, inks=draw_inks(rng, kind, mean_color), light=light, rng=rng)
    mask = np.zeros(size_hw, dtype=np.uint8)
    for name, stamp in placed:
        kind = OBJECTS[name]
        put(canvas, kind, stamp, inks=draw_inks(rng, kind, mean_color), light=light, rng=rng)
        mask[stamp.box][stamp.solid] = names.index(name) + 1
    return expose(canvas, light, rng), mask


def generate_scenes(
    root: str | Path,
    *,
    train: int,
    val: int,
    size_px: int | tuple[int, int] = 128,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    on_scene: Callable[[int], None] | None = None,
) -> Path:
    """Write a data set of generated scenes in the folder layout and return its folder.

    Writes ``images/*.png``, ``masks/*.png`` (palette), ``train.txt``, ``val.txt``, ``labels.txt`` (line ``i`` names
    mask value ``i``) and ``scenes.json``, the request. Everything is written beside ``root`` and renamed at the end, so
    ``root`` is complete or absent. If ``root`` already holds this very request, nothing is done.

    Args:
        root: a folder that is absent, empty, or holds the same request.
        train: number of training scenes; val: number of validation scenes.
        size_px, seed, classes: see :func:`render_scene`.
        on_scene: called with the number of scenes written so far.

    Raises:
        InputError: see :func:`render_scene`; also counts below 0 or both 0, or a ``root`` that holds anything else.
        OSError: the disk is full or the folder cannot be written; ``root`` is as it was.
    """
    root = Path(root)
    names, size_hw = _check_request(classes, size_px, {"seed": seed, "train": train, "val": val})
    if train + val == 0:
        raise InputError("train and val are both 0: nothing to generate. Ask for at least one scene.")
    request = {
        "schema": SCHEMA,
        "train": train,
        "val": val,
        "size_hw": list(size_hw),
        "seed": seed,
        "classes": list(names),
    }
    ids = {"train": [f"train_{i:05d}" for i in range(train)], "val": [f"val_{i:05d}" for i in range(val)]}
    if _already_there(root, request, ids):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.parent / f".{root.name}.{secrets.token_hex(4)}.partial"
    try:
        _write_folder(partial, request, ids, on_scene)
        if root.exists():
            root.rmdir()
        partial.replace(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return root


def parse_size(text: str) -> int | tuple[int, int]:
    """Read ``"128"`` or ``"160x224"`` (height x width).

    Raises:
        InputError: the text has another form.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise InputError(f"size {text!r} is neither a side in pixels such as 128 nor height x width such as 160x224.")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


# --- layout -------------------------------------------------------------------------------------------------------


def _lay_out(rng: Rng, names: Sequence[str], size_hw: tuple[int, int]) -> list[tuple[str, Stamp]]:
    """Choose 1-4 objects and place them, back to front, so that enough of each one stays visible."""
    count = 1 + int(rng.choice(4, p=_OBJECT_COUNT_ODDS))
    order = [names[i] for i in rng.permutation(len(names))]
    wanted = [order[i % len(order)] for i in range(count)]
    if count > 1 and rng.random() < 0.15:
        wanted[-1] = wanted[0]
    largest = 0.45 if count < 3 else 0.38
    radii = np.exp(rng.uniform(math.log(0.15), math.log(largest), count)) * min(size_hw)
    radii = np.maximum(radii, _MIN_RADIUS_PX)
    placed: list[tuple[str, Stamp]] = []
    for name, radius in zip(wanted, np.sort(radii)[::-1], strict=True):  # the large ones at the back
        for _ in range(_LAYOUT_TRIES):
            kind = OBJECTS[name]
            stamp = cut_out(kind, _draw_pose(rng, float(radius), size_hw, kind.tilt), size_hw=size_hw, rng=rng)
            if _all_visible([*(s for _, s in placed), stamp], size_hw):
                placed.append((name, stamp))
                break
    return placed


def _draw_pose(rng: Rng, radius_px: float, size_hw: tuple[int, int], tilt: float) -> Pose:
    y, x = (rng.uniform(0.6 * radius_px, side - 0.6 * radius_px) for side in size_hw)
    stretch = math.exp(rng.uniform(-0.14, 0.14))
    return Pose(y, x, radius_px, float(rng.uniform(-tilt, tilt)), stretch, bool(rng.random() < 0.5))


def _all_visible(stamps: Sequence[Stamp], size_hw: tuple[int, int]) -> bool:
    """Whether every stamp keeps its least visible area when the later ones lie on top of it."""
    owner = np.full(size_hw, -1, dtype=np.int8)
    for i, stamp in enumerate(stamps):
        owner[stamp.box][stamp.solid] = i
    for i, stamp in enumerate(stamps):
        least = max(_MIN_VISIBLE_PX, _MIN_VISIBLE_SHARE * np.count_nonzero(stamp.solid))
        if np.count_nonzero(owner[stamp.box] == i) < least:
            return False
    return True


def _scatter_clutter(rng: Rng, size_hw: tuple[int, int]) -> list[tuple[Kind, Stamp]]:
    """Draw the distractors: now and then a cloth, and a handful of pebbles, twigs and flowers."""
    chosen = ["cloth"] * int(rng.random() < 0.25)
    chosen += [
        ("pebble", "twig", "flower")[i] for i in rng.choice(3, size=int(rng.integers(1, 5)), p=(0.5, 0.25, 0.25))
    ]
    reach = {"cloth": (0.16, 0.34), "pebble": (0.03, 0.13), "twig": (0.08, 0.2), "flower": (0.04, 0.1)}
    things = []
    for name in chosen:
        kind, radius = CLUTTER[name], float(rng.uniform(*reach[name])) * min(size_hw)
        y, x = (float(rng.uniform(0, side)) for side in size_hw)
        pose = Pose(y, x, radius, float(rng.uniform(0, TAU)), math.exp(rng.uniform(-0.3, 0.3)), False)
        things.append((kind, cut_out(kind, pose, size_hw=size_hw, rng=rng)))
    return things


# --- requests and files -------------------------------------------------------------------------------------------


def _check_request(
    classes: Sequence[str] | None, size_px: int | tuple[int, int], counts: dict[str, int]
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Return the class names and the size ``(h, w)``, or raise every fault at once."""
    faults = FaultCollector("scenes")
    names = SCENE_CLASSES if classes is None else tuple(classes)
    if not names:
        faults.add(f"classes is empty; leave it out for all of {', '.join(SCENE_CLASSES)}")
    for name in dict.fromkeys(names):
        if name not in OBJECTS:
            faults.add(f"unknown class {name!r}.{did_you_mean(name, SCENE_CLASSES)} Known: {', '.join(SCENE_CLASSES)}")
        if names.count(name) > 1:
            faults.add(f"class {name!r} is named {names.count(name)} times; name it once")
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    for side in (height, width):
        if not MIN_SIDE_PX <= side <= MAX_SIDE_PX:
            faults.add(f"size {height} x {width} px: each side must be {MIN_SIDE_PX} to {MAX_SIDE_PX} px")
            break
    for what, number in counts.items():
        if number < 0:
            faults.add(f"{what} must not be negative, got {number}")
    faults.raise_if_any()
    return names, (height, width)


def _already_there(root: Path, request: dict[str, Any], ids: dict[str, list[str]]) -> bool:
    """Return whether ``root`` holds this very request; raise unless it does or is free to be written."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file, not a folder; choose another place for the scenes.")
    if not root.exists() or not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / SCENES_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(
            f"{root} is not empty and was not written by this generator; choose another folder or empty it."
        )
    if found != request:
        differs = [f"{k} {found.get(k)!r}, asked for {v!r}" for k, v in request.items() if found.get(k) != v]
        raise InputError(f"{root} holds other scenes ({'; '.join(differs)}); choose another folder or delete it.")
    names = [n for split in ids.values() for n in split]
    missing = [p for n in names for p in (f"images/{n}.png", f"masks/{n}.png") if not (root / p).is_file()]
    if missing:
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise InputError(
            f"{root}: {count} gone since the scenes were made, first {missing[0]}; "
            "delete the folder and generate it again."
        )
    return True


def _write_folder(
    folder: Path, request: dict[str, Any], ids: dict[str, list[str]], on_scene: Callable[[int], None] | None
) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    names: list[str] = request["classes"]
    palette: npt.NDArray[np.uint8] = ClassSet.base(names).palette
    written = 0
    for split, stems in ids.items():
        for index, stem in enumerate(stems):
            size_hw = (request["size_hw"][0], request["size_hw"][1])
            image, mask = render_scene(request["seed"], index, split=split, size_px=size_hw, classes=names)
            Image.fromarray(image).save(folder / "images" / f"{stem}.png", compress_level=1)
            picture = Image.fromarray(mask)
            picture.putpalette(palette.ravel().tolist())
            picture.save(folder / "masks" / f"{stem}.png", compress_level=6)
            written += 1
            if on_scene is not None:
                on_scene(written)
        (folder / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    (folder / "labels.txt").write_text("\n".join([BACKGROUND, *names]) + "\n", encoding="utf-8")
    (folder / SCENES_JSON).write_text(json.dumps(request, indent=2) + "\n", encoding="utf-8")
