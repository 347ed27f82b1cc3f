"""Curves as a picture: one SVG file, text that a diff can show, nothing to install and the same bytes every time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

__all__ = ["Curve", "line_chart", "ticks"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")  # Okabe and Ito
_DASHES = ("", "7 4", "2 3")  # when the colours have been used up
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 800, 420, 64, 40, 560, 370


@dataclass(frozen=True)
class Curve:
    """Points (x, y) from left to right; `band` is what several runs span, as (x, lowest, highest)."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = field(default=())


class _Axes(NamedTuple):
    """From numbers to pixels; what lies outside is drawn at the edge."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)


def line_chart(
    curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, y_range: tuple[float, float] | None = None
) -> str:
    """The SVG text. Curves without a point are in the legend alone; `y_range` cuts off what is outside."""
    points = [(x, y) for curve in curves for x, y in curve.points if math.isfinite(y)]
    ys = [y for _, y in points] + [y for curve in curves for _, *ends in curve.band for y in ends]
    axes = _Axes(_span([x for x, _ in points]), y_range or _span(ys))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-weight="600">{escape(title)}</text>',
        *_grid(axes, x_label, y_label),
    ]
    for number, curve in enumerate(curves):
        parts += _drawn(curve, number, axes)
    return "\n".join([*parts, "</svg>", ""])


def ticks(low: float, high: float, n: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `n` of them: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest, never the same."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(axes: _Axes, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in ticks(*axes.y):
        _, y = axes.at(axes.x[0], value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(*axes.x):
        x, _ = axes.at(value, axes.y[0])
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{_RIGHT}" y="22" text-anchor="end">{escape(y_label)}</text>')
    return parts


def _drawn(curve: Curve, number: int, axes: _Axes) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
    style = f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
    parts = []
    if curve.band:
        above = [axes.at(x, high) for x, _, high in curve.band]
        below = [axes.at(x, low) for x, low, _ in reversed(curve.band)]
        parts.append(f'<path d="M{_path([*above, *below])}Z" fill="{colour}" fill-opacity="0.18"/>')
    line = [axes.at(x, y) for x, y in curve.points if math.isfinite(y)]
    if line:
        parts.append(f'<path d="M{_path(line)}" fill="none" {style}/>')
    y = _TOP + 12 + 19 * number
    parts.append(f'<path d="M{_RIGHT + 14} {y - 4}H{_RIGHT + 36}" {style}/>')
    parts.append(f'<text x="{_RIGHT + 42}" y="{y}">{escape(curve.name)}</text>')
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
