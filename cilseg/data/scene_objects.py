"""The things in generated scenes: silhouettes and textures of the object classes and of the clutter around them.

A class is told by silhouette and texture; colours are shared between classes and with the grounds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cilseg.data.scene_drawing import (
    ACCENT,
    ACCENT_DARK,
    ACCENT_LIGHT,
    INK,
    MAIN,
    MAIN_DARK,
    MAIN_LIGHT,
    PAPER,
    TAU,
    Bytes,
    Field,
    Kind,
    Outline,
    Rng,
    smooth_noise,
)

# --- outlines -----------------------------------------------------------------------------------------------------


def _points(*xy: tuple[float, float]) -> npt.NDArray[np.float64]:
    return np.array(xy, dtype=np.float64)


def _disc(x: float, y: float, radius: float, *, squash: float = 1.0, n: int = 28) -> npt.NDArray[np.float64]:
    angle = np.linspace(0, TAU, n, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * squash * np.sin(angle)], axis=1)


def _polar(radius: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    angle = np.linspace(0, TAU, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> npt.NDArray[np.float64]:
    return _points((left, top), (right, top), (right, bottom), (left, bottom))


def _starfish(rng: Rng) -> Outline:
    angle = np.linspace(0, TAU, 100, endpoint=False)
    core = rng.uniform(0.28, 0.36)
    return [(1, _polar(core + (1 - core) * (0.5 + 0.5 * np.cos(5 * angle)) ** rng.uniform(1.3, 1.8)))]


def _fish(rng: Rng) -> Outline:
    t = np.linspace(0, 1, 24)
    half = rng.uniform(0.4, 0.5) * np.sin(np.pi * t**0.85) ** 0.75
    x = -0.62 + 1.6 * t
    body = np.concatenate([np.stack([x, -half], 1), np.stack([x, half], 1)[::-1]])
    tail = _points((-0.45, 0), (-0.7, -0.2), (-1, -0.5), (-0.86, 0), (-1, 0.5), (-0.7, 0.2))
    back = _points((-0.35, -0.2), (-0.25, -0.66), (0.1, -0.62), (0.45, -0.25))
    belly = _points((-0.15, 0.25), (-0.2, 0.66), (0.1, 0.55), (0.2, 0.25))
    return [(2, tail), (2, back), (2, belly), (1, body), (3, _disc(0.62, -0.1, 0.12)), (4, _disc(0.64, -0.1, 0.06))]


def _boat(rng: Rng) -> Outline:
    x = np.linspace(-0.9, 0.95, 16)
    keel = 0.38 + 0.5 * (1 - np.abs(x / 0.95) ** rng.uniform(2.5, 4))
    hull = np.concatenate([_points((0.98, 0.28), (-0.95, 0.36)), np.stack([x, keel], 1)])
    t = np.linspace(0, 1, 8)[:, None]
    belly = 0.1 * np.sin(np.pi * t) * np.array([[1.0, -0.4]])
    lee, boom = rng.uniform(0.65, 0.8), 0.2
    main = np.concatenate([(1 - t) * _points((0.07, -0.96)) + t * _points((lee, boom)) + belly, _points((0.07, boom))])
    jib = _points((-0.07, -0.78), (-0.07, boom), (-0.66, boom))
    return [(3, _box(-0.045, -1, 0.045, 0.4)), (2, main), (4, jib), (1, hull)]


def _house(rng: Rng) -> Outline:
    ridge = rng.uniform(0, 0.45)
    roof = _points((-0.85, -0.05), (-ridge, -0.8), (ridge, -0.8), (0.85, -0.05))
    door = rng.uniform(-0.15, 0.15)
    parts = [(3, _box(0.3, -0.92, 0.52, -0.3)), (1, _box(-0.66, -0.1, 0.66, 0.72)), (2, roof)]
    parts.append((3, _box(door - 0.13, 0.22, door + 0.13, 0.72)))
    for x in (door - 0.34, door + 0.34):
        parts.append((4, _box(x - 0.13, 0.12, x + 0.13, 0.42)))
        parts.append((3, _box(x - 0.018, 0.12, x + 0.018, 0.42)))
    return parts


def _lifebuoy(rng: Rng) -> Outline:
    return [(1, _disc(0, 0, 0.97, n=48)), (0, _disc(0, 0, rng.uniform(0.46, 0.56), n=36))]


def _leaf(rng: Rng) -> Outline:
    t = np.linspace(0, 1, 40)
    serration = 1 + 0.09 * np.where(np.arange(40) % 3 == 0, 1, -0.5)
    half = rng.uniform(0.42, 0.56) * np.sin(np.pi * t**0.8) ** 0.9 * serration
    x = -0.68 + 1.66 * t
    blade = np.concatenate([np.stack([x, -half], 1), np.stack([x, half], 1)[::-1]])
    return [(2, _points((-1, 0.12), (-0.97, 0.2), (-0.4, 0.05), (-0.4, -0.05))), (1, blade)]


def _tree(rng: Rng) -> Outline:
    parts = [(2, _box(-0.11, 0.5, 0.11, 0.98))]
    tiers = int(rng.integers(3, 5))
    for i in reversed(range(tiers)):
        low = -0.98 + (i + 1.25) * 1.68 / (tiers + 0.25)
        high = max(-0.98, low - 0.95)
        half = 0.34 + 0.34 * (i + 1) / tiers
        teeth = np.linspace(-half, half, 9)
        hem = np.stack([teeth, low + np.where(np.arange(9) % 2 == 0, 0.0, -0.1) - 0.12 * np.abs(teeth / half)], 1)
        parts.append((1, np.concatenate([_points((0, high)), hem])))
    return parts


def _mushroom(rng: Rng) -> Outline:
    rise, angle = rng.uniform(0.78, 0.95), np.linspace(np.pi, TAU, 28)
    dome = np.stack([0.96 * np.cos(angle), 0.08 + rise * np.sin(angle)], axis=1)
    foot = rng.uniform(0.26, 0.36)
    stem = _points((-0.2, 0), (-0.2, 0.4), (-foot, 0.85), (-0.2, 0.97), (0.2, 0.97), (foot, 0.85), (0.2, 0.4), (0.2, 0))
    cap = np.concatenate([dome, _points((0.5, -0.02), (-0.5, -0.02))])
    return [(2, stem), (3, _disc(0, 0.1, 0.88, squash=0.22)), (1, cap)]


def _blob(rng: Rng) -> Outline:
    angle = np.linspace(0, TAU, 40, endpoint=False)
    phase, depth = rng.uniform(0, TAU, 3), rng.uniform(0.04, 0.12, 3)
    wobble = sum(depth[k] * np.cos((k + 2) * angle + phase[k]) for k in range(3))
    return [(1, _polar(0.75 + np.asarray(wobble)))]


def _cloth(rng: Rng) -> Outline:
    corner = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.68 + rng.uniform(-0.16, 0.16, (4, 2))
    return [(1, corner)]


def _twig(rng: Rng) -> Outline:
    t = np.linspace(-1, 1, 12)
    bend, girth = 0.18 * np.sin(2 * t + rng.uniform(0, TAU)), 0.035 + 0.03 * (1 - t) / 2
    stick = np.concatenate([np.stack([t, bend - girth], 1), np.stack([t, bend + girth], 1)[::-1]])
    x = rng.uniform(-0.3, 0.3)
    return [(1, stick), (1, _points((x - 0.05, 0), (x + 0.4, -0.42), (x + 0.44, -0.38), (x + 0.06, 0.06)))]


def _flower(rng: Rng) -> Outline:
    angle = np.linspace(0, TAU, 90, endpoint=False)
    petals = rng.integers(7, 10)
    return [(1, _polar(0.62 + 0.36 * np.abs(np.cos(petals * angle / 2)))), (2, _disc(0, 0, 0.3))]


# --- textures -----------------------------------------------------------------------------------------------------


def _wave(phase: Field, *, sharp: float = 3.0) -> Field:
    """Stripes of period 1 in ``phase`` with soft edges."""
    return np.asarray(
        np.clip(0.5 + sharp * 0.5 * np.sin(np.float32(TAU) * phase), 0, 1).astype(np.float32), dtype=np.float32
    )


def _cells(u: Field, v: Field, *, per_unit: float, aspect: float = 1.0) -> tuple[Field, Field, Field]:
    """Staggered cells: place inside the cell (each in [0, 1)) and a pseudo-random value in [0, 1) per cell."""
    row = np.floor(v * per_unit)
    x = u * (per_unit / aspect) + 0.5 * (row % 2)
    column = np.floor(x)
    return x - column, v * per_unit - row, np.mod(row * 0.618 + column * 0.387, 1)


def _starfish_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    del part
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    arm = np.mod(angle + TAU / 10, TAU / 5) - TAU / 10
    along, across = radius * np.cos(arm), np.abs(radius * np.sin(arm))
    beads = np.cos(along * 23) * np.cos(across * 23 + rng.uniform(-0.3, 0.3))
    return np.asarray(np.clip(1.4 * beads, 0, 1) * 0.8 + 0.5 * np.clip(1 - across * 16, 0, 1) + 0.15, dtype=np.float32)


def _fish_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    a, b, _ = _cells(v, u, per_unit=rng.uniform(4.3, 5))
    scales = np.clip(1.15 - 1.1 * np.hypot((a - 0.5) * 1.3, b), 0, 1) * np.clip(1.3 - np.abs(v), 0, 1)
    head = 0.55 - 0.45 * np.clip(1 - np.abs(u - 0.4 + 0.6 * v * v) * 14, 0, 1)
    rays = _wave(4.5 * np.arctan2(v, u + 0.3))
    return np.where(part == 2, 0.2 + 0.6 * rays, np.where(u > 0.4 - 0.6 * v * v, head, scales))


def _boat_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    planks = 0.25 + 0.55 * np.mod(v * 7, 1) + 0.3 * (v < 0.42)
    bands = _wave(v * rng.uniform(2.2, 2.8) + 0.1 * u, sharp=8)
    return np.where(part == 1, planks, np.where(part == 2, bands, np.where(part == 4, 0.85, 0.3)))


def _house_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    per_unit = rng.uniform(5, 5.8)
    x, y, chance = _cells(u, v, per_unit=per_unit, aspect=1.9)
    bricks = np.where((x < 0.12) | (y < 0.22), 1.0, 0.45 * chance)
    x, y, chance = _cells(u, v, per_unit=per_unit * 0.9, aspect=0.9)
    tiles = np.where((x < 0.14) | (y > 0.78), 0.0, 0.45 + 0.45 * chance)
    return np.where(part == 1, bricks, np.where(part == 2, tiles, np.where(part == 4, 0.5 + 0.5 * v, 0.3)))


def _lifebuoy_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    del part
    angle = np.arctan2(v, u)
    bands = _wave(angle * np.float32(4 / TAU) + 0.08, sharp=9)
    rope = np.clip(1 - np.abs(np.hypot(u, v) - 0.86) * 16, 0, 1) * _wave(angle * np.float32(36 / TAU))
    return np.asarray(bands * rng.uniform(0.88, 1) - 0.75 * rope * (2 * bands - 1), dtype=np.float32)


def _leaf_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    del part
    rib = np.clip(1.3 - np.abs(v) * 26, 0, 1)
    phase = np.mod(u * rng.uniform(4.6, 5.4) - np.abs(v) * 5, 1)
    veins = np.clip(1 - np.abs(phase - 0.5) * 6, 0, 1)
    return np.asarray(np.maximum(rib, 0.8 * veins) + 0.22 * (phase > 0.5), dtype=np.float32)


def _tree_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    zigzag = np.abs(np.mod(u * rng.uniform(4.5, 5.5), 1) - 0.5)
    needles = np.mod(v * 4.8 + 1.1 * zigzag + 0.25 * np.abs(u), 1)
    bark = _wave(u * 14 + 0.3 * v)
    return np.where(part == 2, 0.6 * bark, needles**1.5)


def _mushroom_texture(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    x, y, chance = _cells(u + rng.uniform(0, 0.4), v + 0.15, per_unit=2.5, aspect=1.05)
    spots = np.clip((0.26 + 0.12 * chance - np.hypot(x - 0.5, y - 0.5)) * 14, 0, 1)
    gills = _wave(9 * np.arctan2(u, 0.5 - v))
    fibres = 0.45 + 0.35 * np.sin(u * 40 + 3 * v)
    return np.where(part == 1, spots, np.where(part == 3, 0.5 * gills, fibres))


def _mottled(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    del v
    return np.where(part == 1, smooth_noise(rng, u.shape, cells_hw=(7, 7)), 0.5)


def _weave(part: Bytes, u: Field, v: Field, rng: Rng) -> Field:
    del part
    stripes, cross = _wave(u * rng.uniform(2, 5), sharp=5), _wave(v * rng.uniform(2, 5), sharp=5)
    style = rng.integers(3)
    thread = 0.12 * np.sin(60 * (u + v))
    return np.asarray(
        (stripes if style == 0 else 0.5 * (stripes + cross) if style == 1 else 0.3 + 0.2 * cross) + thread,
        dtype=np.float32,
    )


OBJECTS: dict[str, Kind] = {
    "starfish": Kind(_starfish, _starfish_texture, ((MAIN, MAIN_LIGHT),), bevel=0.22, usual_colors=(9, 1, 0)),
    "boat": Kind(
        _boat,
        _boat_texture,
        ((MAIN_DARK, MAIN_LIGHT), (ACCENT, PAPER), (INK, MAIN_DARK), (ACCENT_LIGHT, PAPER)),
        tilt=0.45,
        bevel=0.12,
        gloss=0.1,
        usual_colors=(6, 12, 8),
    ),
    "house": Kind(
        _house,
        _house_texture,
        ((MAIN, MAIN_LIGHT), (ACCENT_DARK, ACCENT), (MAIN_DARK, MAIN_DARK), (ACCENT_LIGHT, PAPER)),
        tilt=0.45,
        bevel=0.08,
        gloss=0.05,
        usual_colors=(0, 2, 15),
    ),
    "lifebuoy": Kind(_lifebuoy, _lifebuoy_texture, ((MAIN, PAPER),), bevel=0.16, gloss=0.4, usual_colors=(12, 9, 6)),
    "leaf": Kind(
        _leaf,
        _leaf_texture,
        ((MAIN_DARK, MAIN_LIGHT), (MAIN_DARK, MAIN)),
        bevel=0.14,
        gloss=0.15,
        usual_colors=(4, 1, 12),
    ),
    "tree": Kind(
        _tree,
        _tree_texture,
        ((MAIN_DARK, MAIN_LIGHT), (ACCENT_DARK, ACCENT)),
        tilt=0.45,
        gloss=0.05,
        usual_colors=(13, 3, 5),
    ),
    "fish": Kind(
        _fish,
        _fish_texture,
        ((MAIN_DARK, MAIN_LIGHT), (ACCENT_DARK, ACCENT_LIGHT), (PAPER, PAPER), (INK, INK)),
        tilt=0.6,
        bevel=0.26,
        gloss=0.5,
        usual_colors=(11, 7, 5),
    ),
    "mushroom": Kind(
        _mushroom,
        _mushroom_texture,
        ((MAIN, PAPER), (ACCENT, PAPER), (ACCENT_DARK, ACCENT_LIGHT)),
        tilt=0.6,
        bevel=0.26,
        gloss=0.4,
        usual_colors=(12, 0, 10),
    ),
}
"""The classes of generated scenes, in id order (background is 0)."""

CLUTTER: dict[str, Kind] = {
    "pebble": Kind(_blob, _mottled, ((MAIN_DARK, MAIN_LIGHT),), bevel=0.35),
    "cloth": Kind(_cloth, _weave, ((MAIN, ACCENT_LIGHT),), bevel=0.05, gloss=0.0),
    "twig": Kind(_twig, _mottled, ((MAIN_DARK, MAIN),), bevel=0.06, gloss=0.0),
    "flower": Kind(_flower, _mottled, ((MAIN, MAIN_LIGHT), (ACCENT_DARK, ACCENT)), bevel=0.15, gloss=0.0),
}
"""Things that belong to the background."""
