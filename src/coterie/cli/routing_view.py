"""Text coloured by the expert that read each token: on a terminal, as a plain table, as an SVG picture.

The colours and marks are those of `analysis/text_page.py`, which makes the same as HTML.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from coterie.analysis.text_page import PALETTE, RoutedToken, ink

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["PALETTE", "RoutedToken", "coloured", "console", "legend", "svg", "table"]

_MARKS = ("", "underline", "bold", "italic")
_SVG_MARKS = ("", ' text-decoration="underline"', ' font-weight="bold"', ' font-style="italic"')
_COLUMNS, _CELL, _LINE, _FONT, _MARGIN = 84, 8.4, 22, 14, 14  # of the picture; pixels but for the first


def console() -> "Console":
    """stdout for coloured text, NO_COLOR and FORCE_COLOR obeyed. At least 256 colours: of 16 some would be alike."""
    from rich.console import Console

    plain = Console(highlight=False, soft_wrap=True)
    if plain.color_system != "standard":
        return plain
    return Console(highlight=False, soft_wrap=True, color_system="256")


def coloured(token: RoutedToken) -> "Text":
    """The token for a rich console. A line's end is not painted."""
    from rich.text import Text

    text = Text()
    for line in token.text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        text.append(body, _style(token.first)).append(line[len(body) :])
    return text


def legend(n_experts: int, layer: int) -> "Text":
    """`layer 3, first expert: 0 1 2 ...`, each number in its colour."""
    from rich.text import Text

    text = Text(f"layer {layer}, first expert: ")
    for expert in range(n_experts):
        text.append(f" {expert} ", _style(expert)).append(" ")
    return text


def table(tokens: Iterable[RoutedToken], first: int = 0) -> str:
    """One line a token, for a pipe: place from `first` on, experts and weights, the text quoted."""
    lines = []
    for place, t in enumerate(tokens, first):
        experts = " ".join(f"{e}:{w:.2f}" for e, w in zip(t.experts, t.weights, strict=True) if e >= 0)
        lines.append(f"{place}\t{experts or '-'}\t{t.text!r}\n")
    return "".join(lines)


def svg(tokens: Sequence[RoutedToken], n_experts: int, layer: int) -> str:
    """The coloured text as a picture of its own: no font, style sheet or script is fetched."""
    rows = _rows(tokens)
    parts = [_row(row, _MARGIN + i * _LINE) for i, row in enumerate(rows)]
    top = _MARGIN + len(rows) * _LINE + _LINE // 2
    numbers = [(f"layer {layer}, first expert: ", None), *((f" {e} ", e) for e in range(n_experts))]
    keys = _wrapped(numbers)
    parts += [_row(row, top + i * _LINE) for i, row in enumerate(keys)]
    width, height = 2 * _MARGIN + _COLUMNS * _CELL, top + len(keys) * _LINE + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, Menlo, Consolas, monospace" '
        f'font-size="{_FONT}">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{"".join(parts)}</svg>\n'
    )


def _style(expert: int | None) -> str:
    if expert is None:
        return ""
    mark = _MARKS[expert // len(PALETTE) % len(_MARKS)]
    return f"{mark} {ink(expert)} on {PALETTE[expert % len(PALETTE)]}".strip()


_Run = tuple[str, int | None]  # text without a line's end, its expert


def _rows(tokens: Sequence[RoutedToken]) -> list[list[_Run]]:
    """Lines of runs: broken where the text is, and wherever a line is full."""
    rows: list[list[_Run]] = []
    line: list[_Run] = []
    for token in tokens:
        first, *later = token.text.replace("\r\n", "\n").split("\n")
        line.append((first, token.first))
        for part in later:
            rows += _wrapped(line)
            line = [(part, token.first)]
    return rows + _wrapped(line)


def _wrapped(line: Sequence[_Run]) -> list[list[_Run]]:
    from rich.cells import cell_len

    rows: list[list[_Run]] = [[]]
    used = 0
    for text, expert in line:
        for piece in [text] if cell_len(text) <= _COLUMNS else list(text):
            if used + cell_len(piece) > _COLUMNS:
                rows.append([])
                used = 0
            if piece:
                rows[-1].append((piece, expert))
                used += cell_len(piece)
    return rows


def _row(row: Sequence[_Run], top: int) -> str:
    from rich.cells import cell_len

    parts, x = [], float(_MARGIN)
    for text, expert in row:
        width = cell_len(text) * _CELL
        pen, mark = "#000000", ""
        if expert is not None:
            pen, mark = ink(expert), _SVG_MARKS[expert // len(PALETTE) % len(_SVG_MARKS)]
            fill = PALETTE[expert % len(PALETTE)]
            parts.append(f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_LINE - 3}" fill="{fill}"/>\n')
        if text.strip():
            parts.append(
                f'<text x="{x:.1f}" y="{top + _FONT}" textLength="{width:.1f}" fill="{pen}" xml:space="preserve"{mark}>'
                f"{escape(_printable(text))}</text>\n"
            )
        x += width
    return "".join(parts)


def _printable(text: str) -> str:
    """XML forbids control characters; a tab is one cell like any other character here."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
