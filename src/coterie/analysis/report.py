"""Findings as one page that needs nothing but itself: sentences first, then each with picture, table and method.

The page stays below 2 MB whatever the trace: tables show 60 rows (report.json has all), a picture that is larger as
lines than as an image becomes an image, and what still does not fit is left to the files beside it, which it says.
"""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.analysis.plots import both_svg, png
from coterie.analysis.report_style import STYLE
from coterie.analysis.section import Cell, Section, plot_file, shown

__all__ = ["Pictures", "draw", "is_report", "page", "report_document"]

_KIND, _VERSION = "coterie trace report", 1
_ROWS, _CELL = 60, 400  # of a table in the page; letters of a cell
_BYTES, _PICTURE, _SAMPLE = 1_900_000, 120_000, 400_000  # of the page; a picture that stays lines; coloured text


@dataclass(frozen=True)
class Pictures:
    """Of one plot: what stands in the page, and what is written beside it."""

    inline: str
    svg: str
    png: bytes


def draw(sections: Sequence[Section], progress: Callable[[int, int], None] | None = None) -> dict[str, Pictures]:
    """Every plot by the name of its files. Raises ModuleNotFoundError where matplotlib is not installed."""
    plots = [(plot_file(section, n), plot) for section in sections for n, plot in enumerate(section.plots)]
    pictures = {}
    for done, (name, plot) in enumerate(plots, 1):
        (inline, file), image = both_svg(plot, name), png(plot)
        if len(inline) > _PICTURE and len(image) * 4 // 3 < len(inline):
            data = base64.b64encode(image).decode()
            inline = f'<img alt="{html.escape(plot.title)}" src="data:image/png;base64,{data}">'
        pictures[name] = Pictures(inline, file, image)
        if progress:
            progress(done, len(plots))
    return pictures


def report_document(about: dict[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """What report.json and `--json` hold."""
    return {"kind": _KIND, "version": _VERSION, **about, "sections": [section.as_json() for section in sections]}


def page(
    title: str, about: Sequence[tuple[str, str]], sections: Sequence[Section], pictures: dict[str, Pictures],
    sample: str = "",
) -> str:  # fmt: skip
    """The HTML text. `about` is shown at the top, `sample` (HTML of coloured text) after the list of findings."""
    head = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>",
        "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in about) + "</dl>",
        _contents(sections),
        sample if len(sample.encode()) <= _SAMPLE else "",
    ]
    tail = [f'<p class="soft">{_text(_FOOT)}</p>', "</body>\n</html>\n"]
    bodies = _fitting(sections, pictures, _BYTES - sum(len(part.encode()) for part in (*head, *tail)))
    return "\n".join([*head, *bodies, *tail])


def _fitting(sections: Sequence[Section], pictures: dict[str, Pictures], room: int) -> list[str]:
    """Every section at its shortest (a sentence), and what there is room for: tables, then pictures."""
    bodies = [_section(section, {}, has_table=False) for section in sections]
    room -= sum(len(body.encode()) for body in bodies)
    for drawn in ({}, pictures):
        for n, section in enumerate(sections):
            longer = _section(section, drawn, has_table="<table>" in bodies[n] or not drawn)
            more = len(longer.encode()) - len(bodies[n].encode())
            if more <= room:
                bodies[n], room = longer, room - more
    return bodies


_FOOT = (
    "Beside this page: each picture as SVG and PNG, and report.json with every number. Layers are counted from 0, "
    "sparse ones only; an expert's number means nothing beyond its layer."
)


def _contents(sections: Sequence[Section]) -> str:
    items = "\n".join(
        f'<li><a href="#{section.key}">{_text(section.title)}</a>. {_text(section.sentence)}</li>'
        for section in sections
    )
    return f"<nav>\n<h2>What the trace shows</h2>\n<ol>\n{items}\n</ol>\n</nav>"


def _section(section: Section, pictures: dict[str, Pictures], *, has_table: bool) -> str:
    parts = [f'<section id="{section.key}">', f"<h2>{_text(section.title)}</h2>", f"<p>{_text(section.sentence)}</p>"]
    for number in range(len(section.plots)):
        name = plot_file(section, number)
        inline = pictures[name].inline if name in pictures else f'<p class="note">The picture is in {name}.svg.</p>'
        parts.append(f"<figure>{inline}</figure>")
    if section.rows:
        parts.append(_table(section) if has_table else '<p class="note">The table is in report.json.</p>')
    if section.note:
        parts.append(f'<p class="note">{_text(section.note)}</p>')
    return "\n".join([*parts, "</section>"])


def _table(section: Section) -> str:
    rows = section.rows[:_ROWS]
    head = "".join(f"<th>{_text(column)}</th>" for column in section.columns)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    left = len(section.rows) - len(rows)
    more = f'<p class="note">{left:,} more rows are in report.json.</p>' if left else ""
    return (
        f"<details><summary>Table ({len(section.rows):,} rows)</summary>\n"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
        f"{more}</details>"
    )


def _cell(cell: Cell) -> str:
    text = shown(cell)
    text = text if len(text) <= _CELL else text[: _CELL - 1] + "…"
    return f'<td class="number">{_text(text)}</td>' if not isinstance(cell, str) else f"<td>{_text(text)}</td>"


def _text(text: str) -> str:
    """Escaped; control characters, which HTML forbids, as escapes."""
    return html.escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def is_report(folder: Path) -> bool:
    """Whether a folder holds a report of ours and nothing else, so that a new one may take its place."""
    if not folder.is_dir() or not (folder / "report.json").is_file():
        return False
    with open(folder / "report.json", "rb") as f:
        is_ours = _KIND.encode() in f.read(200)
    return is_ours and all(p.is_file() and p.suffix in (".html", ".json", ".svg", ".png") for p in folder.iterdir())
