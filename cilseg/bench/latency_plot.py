"""Speed against accuracy as one self-contained SVG: the fast and good ones stand at the upper left."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cilseg.bench.latency import LatencyRow

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 250, 50, 60
_COLORS = ("#3b6fb6", "#d1822b", "#3f8f5b", "#a5467a", "#7a6a4f", "#5a5a5a")
_MARKS = ("circle", "square", "diamond", "triangle")


def draw_speed_accuracy(rows: Sequence[LatencyRow], *, title: str) -> str:
    """Return an SVG with milliseconds per image to the right and mIoU upwards.

    A colour stands for a runtime, a shape for a precision; rows that do not count (no passed parity check there) are
    hollow. Rows without mIoU are left out.
    """
    shown = [r for r in rows if r.miou is not None]
    if not shown:
        return _document(
            [_text(_LEFT, _TOP, "No row has an mIoU: the gate set has no masks, or --images is 0.")], title
        )
    xs = [r.median_ms / r.batch for r in shown]
    ys = [r.miou for r in shown if r.miou is not None]
    x_ticks, y_ticks = _ticks(0.0, max(xs) * 1.08), _ticks(min(ys) - 0.5, max(ys) + 0.5)

    def x_px(value: float) -> float:
        return _LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y_px(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in x_ticks:
        parts.append(_line(x_px(value), y_px(y_ticks[0]), x_px(value), y_px(y_ticks[-1])))
        parts.append(_text(x_px(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", anchor="middle"))
    for value in y_ticks:
        parts.append(_line(x_px(x_ticks[0]), y_px(value), x_px(x_ticks[-1]), y_px(value)))
        parts.append(_text(_LEFT - 8, y_px(value) + 4, f"{value:g}", anchor="end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 18, "milliseconds per image (median)", anchor="middle"))
    parts.append(_text(16, _TOP - 14, "mIoU (points)"))
    backends = list(dict.fromkeys(r.backend for r in shown))
    precisions = list(dict.fromkeys(r.precision for r in shown))
    for row, x, y in zip(shown, xs, ys, strict=True):
        color = _COLORS[backends.index(row.backend) % len(_COLORS)]
        mark = _MARKS[precisions.index(row.precision) % len(_MARKS)]
        label = (
            f"{row.backend} {row.precision}, {row.width} x {row.height}, batch {row.batch}: {x:.1f} ms per image, mIoU "
            f"{y:.2f}{'' if row.counts else ' (no passed parity check: does not count)'}"
        )
        parts.append(_mark(mark, x_px(x), y_px(y), color, filled=row.counts, label=label))
    at = _TOP + 6
    for index, name in enumerate(backends):
        parts.append(_mark("circle", _WIDTH - _RIGHT + 30, at, _COLORS[index % len(_COLORS)], filled=True, label=name))
        parts.append(_text(_WIDTH - _RIGHT + 44, at + 4, name))
        at += 22
    at += 10
    for index, name in enumerate(precisions):
        parts.append(_mark(_MARKS[index % len(_MARKS)], _WIDTH - _RIGHT + 30, at, "#444", filled=True, label=name))
        parts.append(_text(_WIDTH - _RIGHT + 44, at + 4, name))
        at += 22
    if not all(r.counts for r in shown):
        parts.append(_mark("circle", _WIDTH - _RIGHT + 30, at + 10, "#444", filled=False, label="does not count"))
        parts.append(_text(_WIDTH - _RIGHT + 44, at + 14, "parity not passed"))
    return _document(parts, title)


def _document(parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
    )
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    heading = f'<text x="{_LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, background, heading, *parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Return about six round numbers that span ``low`` .. ``high``."""
    span = max(high - low, 1e-9)
    step = next(s for s in (m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5)) if span / s <= 7)
    first = step * (low // step)
    count = int(-(-(high - first) // step))
    return [round(first + step * i, 9) for i in range(count + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'


def _mark(kind: str, x: float, y: float, color: str, *, filled: bool, label: str) -> str:
    style = f'fill="{color if filled else "#fff"}" stroke="{color}" stroke-width="2"'
    title = f"<title>{escape(label)}</title>"
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" {style}>{title}</circle>'
    points = {
        "square": ((-6, -6), (6, -6), (6, 6), (-6, 6)),
        "diamond": ((0, -8), (8, 0), (0, 8), (-8, 0)),
        "triangle": ((0, -8), (8, 6), (-8, 6)),
    }[kind]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)
    return f'<polygon points="{path}" {style}>{title}</polygon>'
