"""The grounds of generated scenes: sand, grass, water, wood and stone, from noise of several octaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from cilseg.data.scene_drawing import PALETTE, TAU, Field, Rng, smooth_noise


def _octaves(rng: Rng, size_hw: tuple[int, int], *, cells: int, octaves: int = 4, stretch: float = 1.0) -> Field:
    """Sum noise of doubling frequency (``cells`` knots across at first, ``stretch`` times more of them down)."""
    total = np.zeros(size_hw, dtype=np.float32)
    shorter = min(size_hw)
    for octave in range(octaves):
        knots = cells * 2**octave
        shape = (round(knots * stretch * size_hw[0] / shorter), round(knots * size_hw[1] / shorter))
        total += 0.55**octave * smooth_noise(rng, size_hw, cells_hw=shape)
    return total * np.float32(0.45 / (1 - 0.55**octaves))


def _sand(rng: Rng, y: Field, x: Field) -> Field:
    """Wind ripples, steep on one side, and coarse and fine grain."""
    size = (y.size, x.size)
    turn, per_side = rng.uniform(0, TAU), rng.uniform(7, 12)
    bend = _octaves(rng, size, cells=3, octaves=3)
    phase = per_side * (math.cos(turn) * y + math.sin(turn) * x) + 2.2 * bend
    ripples = np.sin(TAU * phase + 0.7 * np.sin(TAU * phase))
    strength = np.clip(2.5 * _octaves(rng, size, cells=3, octaves=1) - 0.7, 0.15, 1)
    return np.asarray(
        0.62 + 0.2 * strength * ripples + 0.55 * (_octaves(rng, size, cells=50, octaves=2) - 0.5) + 0.5 * (bend - 0.5),
        dtype=np.float32,
    )


def _grass(rng: Rng, y: Field, x: Field) -> Field:
    """Blades drawn one by one, dark ones first, over a streaky mat."""
    height, width = y.size, x.size
    shorter = min(height, width)
    unit = shorter / 64  # drawn at twice the size
    mat = _octaves(rng, (height, width), cells=70, octaves=1, stretch=0.3)
    picture = Image.fromarray((60 + 110 * mat).clip(0, 255).astype(np.uint8)).resize((2 * width, 2 * height))
    draw = ImageDraw.Draw(picture)
    count = round(800 * height * width / shorter**2)
    foot = rng.random((count, 2)) * (2 * width, 2 * height + 6 * unit)
    length = rng.uniform(2.5, 6.5, count) * unit
    lean = rng.normal(rng.uniform(-0.4, 0.4), 0.35, count)
    tip = foot + np.stack([lean * length, -length], axis=1)
    tones = np.sort(rng.integers(25, 250, count)).tolist()
    for line, tone in zip(np.hstack([foot, tip]).tolist(), tones, strict=True):
        draw.line(line, fill=tone, width=max(1, round(0.6 * unit)))
    blades = np.asarray(picture.reduce(2)).astype(np.float32) / 255
    return 0.12 + 0.75 * blades + 0.6 * (_octaves(rng, (height, width), cells=3, octaves=3) - 0.5)


def _water(rng: Rng, y: Field, x: Field) -> Field:
    size = (y.size, x.size)
    bend = _octaves(rng, size, cells=4, octaves=3)
    swell = np.sin(TAU * (rng.uniform(4, 7) * y + 1.2 * bend + 0.3 * x))
    glints = np.clip(1 - np.abs(_octaves(rng, size, cells=7, octaves=2, stretch=1.7) - 0.5) * 14, 0, 1)
    return np.asarray(0.36 + 0.14 * swell + 0.5 * (bend - 0.5) + 0.42 * glints, dtype=np.float32)


def _wood(rng: Rng, y: Field, x: Field) -> Field:
    size = (y.size, x.size)
    upright = rng.random() < 0.5
    across = x if upright else y
    board = across * rng.uniform(4, 6.5) + rng.uniform(0, 1)
    number = np.floor(board).astype(int)
    tone = rng.random(32, dtype=np.float32)[np.clip(number, 0, 31)]
    cells = (3, 90) if upright else (90, 3)
    knots = (6, 24) if upright else (24, 6)
    grain = smooth_noise(rng, size, cells_hw=cells) + 0.8 * smooth_noise(rng, size, cells_hw=knots)
    gap = board - number < 0.06
    return np.asarray((0.28 + 0.3 * tone + 0.42 * (grain - 0.6)) * np.where(gap, 0.15, 1), dtype=np.float32)


def _stone(rng: Rng, y: Field, x: Field) -> Field:
    """Cobbles: the cells of jittered grid points, darker towards their borders."""
    size = (y.size, x.size)
    per_side = rng.uniform(5, 9)
    bend = 0.25 * _octaves(rng, size, cells=5, octaves=2)
    gy, gx = y * per_side + bend, x * per_side + bend
    iy, ix = np.floor(gy).astype(np.int32), np.floor(gx).astype(np.int32)
    jitter = rng.random((3, 24, 48), dtype=np.float32)
    nearest = np.full(size, 9, dtype=np.float32)
    second, tone = nearest.copy(), np.zeros(size, dtype=np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (iy + dy) % 24, (ix + dx) % 48
            distance = (iy + dy + jitter[0][row, column] - gy) ** 2 + (ix + dx + jitter[1][row, column] - gx) ** 2
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            tone = np.where(closer, jitter[2][row, column], tone)
            nearest = np.where(closer, distance, nearest)
    joint = np.clip((np.sqrt(second) - np.sqrt(nearest)) * 4, 0, 1)
    grit = _octaves(rng, size, cells=30, octaves=2) - 0.5
    return np.asarray(joint * (0.42 + 0.4 * tone + 0.7 * grit) + 0.06, dtype=np.float32)


_GROUNDS: tuple[tuple[Callable[[Rng, Field, Field], Field], tuple[tuple[int, int], ...]], ...] = (
    # texture, and the pairs of palette colours (dark, light) it is seen in
    (_sand, ((15, 2), (1, 2), (15, 14), (7, 14))),
    (_grass, ((4, 3), (13, 3), (13, 1), (4, 1))),
    (_water, ((6, 11), (5, 11), (6, 5), (7, 11))),
    (_wood, ((8, 15), (12, 1), (7, 14), (8, 0), (5, 3))),
    (_stone, ((7, 14), (8, 14), (10, 14), (12, 9), (6, 7))),
)


def ground(rng: Rng, size_hw: tuple[int, int]) -> Field:
    """Draw one ground, or two that meet along a winding border; ``(H, W, 3)``, 0-255."""
    first = _plain_ground(rng, size_hw)
    if rng.random() < 0.55:
        return first
    second = _plain_ground(rng, size_hw)
    turn = rng.uniform(0, TAU)
    y, x = _axes(size_hw)
    side = math.cos(turn) * (y - y.mean()) + math.sin(turn) * (x - x.mean()) + rng.uniform(-0.2, 0.2)
    border = np.clip(0.5 + 25 * (side + 0.5 * (_octaves(rng, size_hw, cells=4) - 0.5)), 0, 1)[..., None]
    edge = 1 - 0.35 * (4 * border * (1 - border))
    return np.asarray((first + border * (second - first)) * edge, dtype=np.float32)


def _plain_ground(rng: Rng, size_hw: tuple[int, int]) -> Field:
    texture, pairs = _GROUNDS[int(rng.integers(len(_GROUNDS)))]
    low, high = PALETTE[list(pairs[int(rng.integers(len(pairs)))])] + rng.normal(0, 8, (2, 3)).astype(np.float32)
    low = 0.62 * low
    tone = np.clip(texture(rng, *_axes(size_hw)), 0, 1).astype(np.float32)
    return np.asarray(low + tone[..., None] * (high - low), dtype=np.float32)


def _axes(size_hw: tuple[int, int]) -> tuple[Field, Field]:
    """Coordinates ``(H, 1)`` and ``(1, W)`` in units of the shorter side."""
    y, x = (np.arange(side, dtype=np.float32) / np.float32(min(size_hw)) for side in size_hw)
    return y[:, None], x[None, :]
