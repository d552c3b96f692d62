"""How generated scenes are drawn: silhouettes cut out of polygons, textured, lit, shadowed and photographed.

A :class:`Kind` of thing is drawn in a unit disc (u to the right, v down): polygons numbered by part, then a texture,
a tone in [0, 1] per sample that mixes the two inks of the part. Colours come from one palette for all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Outline = list[tuple[int, npt.NDArray[np.float64]]]

SUPERSAMPLING = 3
TAU = 2 * math.pi
_TONES = 128
_USUAL_COLOR_ODDS = 0.75

PALETTE: Field = np.array(
    [
        (196, 96, 66), (222, 170, 68), (236, 218, 178), (140, 158, 108), (108, 116, 62), (58, 130, 132),
        (54, 80, 120), (116, 126, 134), (134, 92, 60), (230, 126, 102), (126, 76, 108), (134, 178, 200),
        (166, 72, 46), (84, 108, 68), (206, 196, 176), (176, 142, 98),
    ],
    dtype=np.float32,
)  # fmt: skip

# Indices into the eight inks of an object, see object_inks().
MAIN, MAIN_DARK, MAIN_LIGHT, ACCENT, ACCENT_DARK, ACCENT_LIGHT, INK, PAPER = range(8)


def object_inks(main: Field, accent: Field) -> Field:
    """Return the ``(8, 3)`` inks of an object: main and accent colour with a dark and a light tone each, ink, paper."""
    main = main * min(1.0, 172 / float(main.mean()))  # paper must stand out from it
    return np.stack(
        [
            main, main * 0.52, main * 0.5 + 122, accent, accent * 0.52, accent * 0.5 + 122,
            np.array([40, 36, 38], np.float32), np.array([238, 232, 218], np.float32),
        ]
    ).astype(np.float32)  # fmt: skip


def smooth_noise(rng: Rng, shape_hw: tuple[int, int], *, cells_hw: tuple[int, int]) -> Field:
    """Return noise in about [0, 1] of ``shape_hw``: random values on ``cells_hw`` knots, interpolated bicubically."""
    knots = rng.random((max(2, cells_hw[0]), max(2, cells_hw[1])), dtype=np.float32)
    return np.asarray(Image.fromarray(knots).resize(shape_hw[::-1], Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    ``outline`` draws the parts in order (part 0 cuts a hole); ``texture(part, u, v, rng)`` gives the tone;
    ``inks[p - 1]`` names the inks for tone 0 and tone 1 of part ``p``. ``tilt`` is the largest rotation in radians,
    ``bevel`` the width of the rounded edge as a share of the radius. ``usual_colors`` are palette indices that come
    more often than the others; several kinds share each of them.
    """

    outline: Callable[[Rng], Outline]
    texture: Callable[[Bytes, Field, Field, Rng], Field]
    inks: tuple[tuple[int, int], ...]
    tilt: float = math.pi
    bevel: float = 0.2
    gloss: float = 0.25
    usual_colors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pose:
    """Where a thing lies: centre and radius in pixels, rotation in radians, width relative to height, mirrored."""

    y_px: float
    x_px: float
    radius_px: float
    angle: float
    stretch: float
    mirrored: bool


@dataclass(frozen=True)
class Stamp:
    """A cut-out: its box in the scene, the part number per sample ``(s*h, s*w)``, its coverage ``(h, w)`` 0-255."""

    box: tuple[slice, slice]
    part: Bytes
    coverage: Bytes
    pose: Pose

    @property
    def solid(self) -> npt.NDArray[np.bool_]:
        """``(h, w)``: pixels of which the thing covers at least half."""
        return self.coverage >= 128


def cut_out(kind: Kind, pose: Pose, *, size_hw: tuple[int, int], rng: Rng) -> Stamp:
    """Draw the silhouette of ``kind`` at ``pose``, clipped to a scene of ``size_hw``."""
    height, width = size_hw
    reach = pose.radius_px * max(1.0, pose.stretch) + 1
    top, bottom = (int(np.clip(pose.y_px + d, 0, height - 1)) for d in (-reach, reach))
    left, right = (int(np.clip(pose.x_px + d, 0, width - 1)) for d in (-reach, reach))
    s = SUPERSAMPLING
    canvas = Image.new("L", ((right - left + 1) * s, (bottom - top + 1) * s), 0)
    draw = ImageDraw.Draw(canvas)
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    for part, points in kind.outline(rng):
        u = points[:, 0] * (-pose.stretch if pose.mirrored else pose.stretch)
        x = pose.x_px + pose.radius_px * (cos * u - sin * points[:, 1])
        y = pose.y_px + pose.radius_px * (sin * u + cos * points[:, 1])
        xy = np.stack([(x - left) * s - 0.5, (y - top) * s - 0.5], axis=1)
        draw.polygon(xy.ravel().tolist(), fill=part)
    coverage = canvas.point([0] + [255] * 255).reduce(s)
    return Stamp((slice(top, bottom + 1), slice(left, right + 1)), np.asarray(canvas), np.asarray(coverage), pose)


def paint(kind: Kind, stamp: Stamp, *, inks: Field, rng: Rng) -> Field:
    """Return the unlit colours ``(h, w, 3)``, 0-255, of a cut-out; meaningful where its coverage is not 0."""
    pose, s = stamp.pose, SUPERSAMPLING
    rows, columns = stamp.part.shape
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / s + stamp.box[0].start - pose.y_px) / pose.radius_px
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / s + stamp.box[1].start - pose.x_px) / pose.radius_px
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    u = (cos * x[None, :] + sin * y[:, None]) / (-pose.stretch if pose.mirrored else pose.stretch)
    v = cos * y[:, None] - sin * x[None, :]
    tone = kind.texture(stamp.part, u.astype(np.float32), v.astype(np.float32), rng).astype(np.float32)
    tone += np.float32(0.35) * (smooth_noise(rng, tone.shape, cells_hw=(9, 9)) - np.float32(0.5))
    table = np.array([kind.inks[0], *kind.inks])  # samples outside borrow the first part's inks: no dark seams
    low, high = inks[table[:, 0]], inks[table[:, 1]]
    steps = np.linspace(0, 1, _TONES, dtype=np.float32)[None, :, None]
    colors = (low[:, None] + steps * (high - low)[:, None]).astype(np.uint8).reshape(-1, 3)
    index = np.clip(tone * (_TONES - 1), 0, _TONES - 1).astype(np.intp) + stamp.part.astype(np.intp) * _TONES
    return np.asarray(Image.fromarray(colors.take(index, axis=0)).reduce(s)).astype(np.float32)


# --- light and camera -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Light:
    """Direction towards the light (unit vector, image axes), how hard it is, colour gain, overall brightness."""

    y: float
    x: float
    hardness: float
    gain: Field
    brightness: float

    @classmethod
    def draw(cls, rng: Rng) -> Light:
        angle, warmth = rng.uniform(0, TAU), rng.uniform(-1, 1)
        gain = np.array([1 + 0.1 * warmth, 1 + 0.01 * warmth, 1 - 0.13 * warmth], dtype=np.float32)
        return cls(math.sin(angle), math.cos(angle), rng.uniform(0.55, 1), gain, rng.uniform(0.86, 1.22))


def _blurred(field: Bytes, radius_px: float) -> Field:
    """Return ``field`` blurred, as a share of 255."""
    picture = Image.fromarray(field).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(picture).astype(np.float32) / np.float32(255)


def put(canvas: Field, kind: Kind, stamp: Stamp, *, inks: Field, light: Light, rng: Rng) -> None:
    """Lay one thing onto the canvas: soft shadow, rounded edges, highlight, anti-aliased rim."""
    radius = stamp.pose.radius_px
    bevel_px = max(0.8, kind.bevel * radius)
    margin = math.ceil(2.5 * bevel_px)
    height = np.pad(stamp.coverage, margin)
    relief = _blurred(height, bevel_px)
    down, right = relief[:-2, 1:-1] - relief[2:, 1:-1], relief[1:-1, :-2] - relief[1:-1, 2:]
    inner = slice(margin - 1, 1 - margin)
    slope = ((light.y * down + light.x * right) * np.float32(bevel_px))[inner, inner]
    rim = relief[margin:-margin, margin:-margin]
    rgb = paint(kind, stamp, inks=inks, rng=rng)
    shade = (0.78 + 0.3 * np.clip(rim, 0, 1)) * (1 + light.hardness * 0.8 * slope)
    shine = kind.gloss * light.hardness * 150 * np.clip(3.2 * slope - 0.35, 0, 1) ** 2
    rgb = rgb * shade[..., None].astype(np.float32) + shine[..., None].astype(np.float32)
    _cast_shadow(canvas, stamp, light, lift_px=(0.05 + 0.25 * kind.bevel) * radius)
    alpha = stamp.coverage.astype(np.float32)[..., None] / 255
    canvas[stamp.box] += alpha * (rgb - canvas[stamp.box])


def _cast_shadow(canvas: Field, stamp: Stamp, light: Light, *, lift_px: float) -> None:
    """Darken the canvas where the thing keeps the light away: its silhouette, moved off and softened."""
    soft_px = 0.6 + 0.5 * lift_px
    pad = math.ceil(lift_px + 2.5 * soft_px)
    shadow = _blurred(np.pad(stamp.coverage, pad), soft_px) * (0.6 * light.hardness)
    top = stamp.box[0].start - pad - round(lift_px * light.y)
    left = stamp.box[1].start - pad - round(lift_px * light.x)
    rows = slice(max(0, top), min(canvas.shape[0], top + shadow.shape[0]))
    columns = slice(max(0, left), min(canvas.shape[1], left + shadow.shape[1]))
    part = shadow[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns] *= 1 - part[..., None]


def draw_inks(rng: Rng, kind: Kind, mean_color: Field) -> Field:
    """Draw the colours of a thing: often a usual one of its kind, else that of two which stands out from the ground."""
    picked = rng.choice(len(PALETTE), size=3, replace=False)
    usual = kind.usual_colors[int(rng.integers(len(kind.usual_colors)))] if kind.usual_colors else -1
    contrast = np.abs(PALETTE[picked[:2]] - mean_color).sum(axis=1)
    main = usual if usual >= 0 and rng.random() < _USUAL_COLOR_ODDS else picked[int(np.argmax(contrast))]
    colors = PALETTE[[main, picked[2]]] + rng.normal(0, 9, (2, 3)).astype(np.float32)
    main_color, accent = np.clip(colors, 8, 247)
    return object_inks(main_color, accent)


def expose(canvas: Field, light: Light, rng: Rng) -> Bytes:
    """Apply what the light and the camera do to the whole picture; ``(H, W, 3)`` uint8."""
    height, width = canvas.shape[:2]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    falloff = 1 + rng.uniform(0, 0.16) * (light.y * y + light.x * x) - 0.08 * (x * x + y * y)
    if rng.random() < 0.4:  # shade of something outside the picture
        dapple = smooth_noise(rng, (height, width), cells_hw=(5, 5))
        falloff = falloff * (1 - 0.3 * np.clip(4 * (dapple - 0.5), 0, 1))
    lit = canvas * (falloff * light.brightness)[..., None] * light.gain
    picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    soft_px = rng.uniform(0, 0.5) * math.sqrt(min(height, width) / 128)
    if soft_px > 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(soft_px))
    noise = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(1.5, 5)
    return np.asarray(np.clip(np.asarray(picture) + noise[..., None] + 0.5, 0, 255), dtype=np.uint8)
