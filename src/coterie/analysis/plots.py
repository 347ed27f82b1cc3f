"""A `Plot` as a picture: SVG for a page or a file, PNG. matplotlib draws, without pyplot and its state.

In a page, text and axes take the colour of the page's text, so that a dark page has a dark picture; a file has black
on white. Letters stay letters, in whatever sans-serif font the reader has. The same plot gives the same bytes.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from typing import TYPE_CHECKING, Any

from coterie.analysis.section import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "both_svg", "png", "svg"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")  # Okabe and Ito
_DASHES = ("-", (0, (5, 2)), (0, (1, 1)))  # when the colours have been used up
_REFERENCE: Any = (0, (2, 2))
_INK, _GRID, _GROUND = "#010101", "#020202", "#030303"  # in SVG stand for what the picture will be drawn in
_FILE = {_INK: "#222222", _GRID: "#dddddd", _GROUND: "#ffffff"}
_PAGE = {_INK: "currentColor", _GRID: "var(--grid)", _GROUND: "none"}
_WIDTH, _HEIGHT, _DPI = 5.6, 3.4, 160  # inches of the axes' part; a phone shows it at two thirds
_TITLE = 58  # letters of a line
_VECTOR_CELLS, _NUMBERED_CELLS = 2000, 160  # of a heatmap: more are an image; fewer have their number in them
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def svg(plot: Plot, name: str) -> str:
    """The text of a file: black on white. `name` makes the ids of this picture its own."""
    return both_svg(plot, name)[1]


def both_svg(plot: Plot, name: str) -> tuple[str, str]:
    """An `<svg>` element to stand in a page, which defines the CSS variable --grid, and the text of a file."""
    out = io.StringIO()
    with _figure(plot, name, _INK, _GRID) as figure:
        figure.savefig(out, format="svg", facecolor=_GROUND, metadata={"Date": None, "Creator": None})
    text = re.sub(r'\b(id="|href="#|url\(#)', lambda m: f"{m[1]}{name}-", out.getvalue())
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", re.sub(r"\s*\n\s*", "\n", text), flags=re.DOTALL)
    page = _dyed(text[text.index("<svg") :], _PAGE)
    for side in ("width", "height"):  # as wide as the page lets it
        page = re.sub(rf'(<svg\b[^>]*?) {side}="[^"]*"', r"\1", page, count=1)
    return page, _dyed(text, _FILE)


def png(plot: Plot) -> bytes:
    """Black on white, 160 dots an inch."""
    out = io.BytesIO()
    with _figure(plot, "png", _FILE[_INK], _FILE[_GRID]) as figure:
        figure.savefig(out, format="png", dpi=_DPI, facecolor=_FILE[_GROUND], metadata={"Software": None})
    return out.getvalue()


def _dyed(text: str, colours: dict[str, str]) -> str:
    return re.sub("|".join(colours), lambda m: colours[m[0]], text)


@contextmanager
def _figure(plot: Plot, salt: str, ink: str, grid: str) -> Iterator["Figure"]:
    import matplotlib
    from matplotlib.figure import Figure

    standard = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {**standard, **_STYLE, **dict.fromkeys(inks, ink), "grid.color": grid, "svg.hashsalt": salt}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's own font lacks: the reader's has them
        figure = Figure(figsize=(_WIDTH, _height(plot)), layout="constrained")
        axes = figure.add_subplot()
        title = "\n".join(textwrap.wrap(_clean(plot.title), _TITLE))
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(_clean(plot.x_label))
        if plot.kind == "heatmap":
            _draw_heatmap(figure, axes, plot)
        else:
            _draw_lines(axes, plot) if plot.kind == "lines" else _draw_bars(axes, plot)
            _finish(figure, axes, plot)
        yield figure


def _height(plot: Plot) -> float:
    """Inches: rows of a heatmap and of a legend need their own."""
    if plot.kind == "heatmap":
        return min(max(1.4 + 0.26 * len(plot.series), 2.2), 9.0)
    return _HEIGHT + 0.22 * -(-len(plot.series) // 3)


def _draw_lines(axes: "Axes", plot: Plot) -> None:
    is_named = any(isinstance(x, str) for x in plot.x)
    places = list(range(len(plot.x))) if is_named else plot.x
    marker, number = "o" if len(plot.x) <= 24 else "", 0
    for name, values in plot.series.items():
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        style: Any = {"linewidth": 1.6, "marker": marker, "markersize": 3.5, "linestyle": dash}
        if name in plot.baselines:
            colour, style = _ink_of(axes), {"linewidth": 1, "linestyle": _REFERENCE}
        number += name not in plot.baselines
        axes.plot(places, values, label=_clean(name), color=colour, **style)
        if ends := _interval(plot, name):
            axes.fill_between(places, *ends, color=colour, alpha=0.18, linewidth=0)
    if is_named:
        _name_places(axes, plot)


def _draw_bars(axes: "Axes", plot: Plot) -> None:
    n, width = len(plot.series), 0.82 / max(len(plot.series), 1)
    for i, (name, values) in enumerate(plot.series.items()):
        places = [x + (i - (n - 1) / 2) * width for x in range(len(plot.x))]
        axes.bar(places, values, width * 0.94, label=_clean(name), color=COLOURS[i % len(COLOURS)])
        if ends := _interval(plot, name):
            below, above = ([abs(end - v) for end, v in zip(line, values, strict=True)] for line in ends)
            axes.errorbar(places, values, [below, above], fmt="none", ecolor=_ink_of(axes), elinewidth=0.8)
    axes.set_xlim(-0.6, len(plot.x) - 0.4)  # also where the last bar is missing
    _name_places(axes, plot)


def _interval(plot: Plot, name: str) -> tuple[list[float], list[float]] | None:
    low, high = (plot.low or {}).get(name), (plot.high or {}).get(name)
    return None if low is None or high is None else (low, high)


def _ink_of(axes: "Axes") -> Any:
    return axes.xaxis.label.get_color()


def _name_places(axes: "Axes", plot: Plot) -> None:
    """Names below the axis; of very many every other one, so that they stay apart; slanted where they are long."""
    every = -(-len(plot.x) // 24)
    names = [_clean(x if isinstance(x, str) else f"{x:g}") for x in plot.x[::every]]
    is_long = len(names) * (max(map(len, names), default=0) + 1) > 64
    slant: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(range(0, len(plot.x), every), names, **slant)


def _finish(figure: "Figure", axes: "Axes", plot: Plot) -> None:
    axes.set_ylabel(_clean(plot.y_label))
    axes.grid(axis="y", linewidth=0.7)
    for name, value in plot.references.items():
        axes.axhline(value, color=_ink_of(axes), linewidth=1, linestyle=_REFERENCE, label=_clean(name))
    n = len(plot.series) + len(plot.references)
    if n > 1 or plot.references:
        longest = max(map(len, [*plot.series, *plot.references]))
        figure.legend(loc="outside lower left", ncols=max(1, min(n, 4, 84 // (longest + 6))))


def _draw_heatmap(figure: "Figure", axes: "Axes", plot: Plot) -> None:
    rows, n = list(plot.series.values()), len(plot.x)
    mesh: Any
    if len(rows) * n > _VECTOR_CELLS:
        mesh = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="viridis")
    else:
        mesh = axes.pcolormesh(range(n), range(len(rows)), rows, cmap="viridis", shading="nearest")
        axes.invert_yaxis()
    every = -(-len(rows) // 32)
    axes.set_yticks(range(0, len(rows), every), [_clean(name) for name in plot.series][::every])
    _name_places(axes, plot)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=axes, label=_clean(plot.y_label))
    bar.outline.set_visible(False)
    if len(rows) * n <= _NUMBERED_CELLS and n <= 16:
        _number_cells(axes, mesh, rows)


def _number_cells(axes: "Axes", mesh: Any, rows: list[list[float]]) -> None:
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            if not isnan(value):
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                ink = "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#ffffff"
                text = axes.text(x, y, _short(value), color=ink, ha="center", va="center", fontsize=7)
                text.set_in_layout(False)  # lies inside the axes, and measuring takes long


def _short(value: float) -> str:
    """Three letters or so."""
    return f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.2g}"


def _clean(text: str) -> str:
    """Control characters, which SVG forbids, as escapes; long names cut; no _ first, which a legend leaves out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    text = f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text
    return text if len(text) <= 64 else text[:63] + "…"
