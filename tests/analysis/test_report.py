"""The page: whole, small, nothing fetched, hostile text harmless; what may be replaced by a new report."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from coterie.analysis.section import Plot, Section

pytest.importorskip("matplotlib")

from coterie.analysis.report import draw, is_report, page, report_document

VOID = {"meta", "img", "br", "path", "use"}
HOSTILE = "<script>alert(1)</script>\x00\x1b[31m&"


class Checker(HTMLParser):
    """Every element closed, in order; what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        for name in ("src", "href", "xlink:href"):
            target = values.get(name) or ""
            if target and not target.startswith(("#", "data:image/png")):
                self.fetched.append(target)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def section(key: str = "first", n_rows: int = 2, n_cells: int = 4) -> Section:
    heat = Plot("heatmap", "t", "x", "y", [str(i) for i in range(n_cells)], {str(i): [0.5] * n_cells for i in range(4)})
    bars = Plot("bars", HOSTILE, "x", "y", [HOSTILE, "b"], {"s": [0.5, 0.7]}, references={"chance": 0.6})
    rows = tuple((HOSTILE, n, 0.25, None) for n in range(n_rows))
    return Section(key, "A title", f"A sentence {HOSTILE}.", ("a", "b", "c", "d"), rows, (bars, heat), "A note.")


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.fetched == [] and len(set(checker.ids)) == len(checker.ids)
    return checker


def test_a_page_is_whole_and_fetches_nothing() -> None:
    sections = [section(), section("second")]
    text = page("A model", [("trace", HOSTILE)], sections, draw(sections))
    checker = checked(text)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert {"svg", "table", "nav", "details"} <= checker.tags and {"first", "second"} <= set(checker.ids)
    assert "\x00" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    assert "url(http" not in text and "@import" not in text and 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_findings_come_first_each_with_a_way_to_it() -> None:
    text = page("A model", [], [section()], {})
    assert text.index('<a href="#first">A title</a>. A sentence') < text.index('<section id="first">')
    assert "The picture is in first.svg" in text


def test_a_long_table_is_cut_and_says_so() -> None:
    text = page("A model", [], [section(n_rows=1000)], {})
    assert text.count("<tr>") == 61 and "940 more rows are in report.json" in text and "Table (1,000 rows)" in text


def test_a_page_stays_below_two_megabytes() -> None:
    sections = [section(f"key-{n}", n_rows=60) for n in range(40)]
    pictures = {f"key-{n}{more}": Fake("<svg>" + "x" * 100_000 + "</svg>") for n in range(40) for more in ("", "-2")}
    text = page("A model", [], sections, pictures)  # type: ignore[arg-type]
    assert 1_500_000 < len(text.encode()) < 2_000_000
    checked(text)
    assert all(f'<section id="key-{n}">' in text for n in range(40)) and "The picture is in key-39.svg" in text


class Fake:
    def __init__(self, inline: str) -> None:
        self.inline = inline


def test_every_plot_is_drawn_under_its_name(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pictures = draw([section()], lambda done, total: seen.append((done, total)))
    assert list(pictures) == ["first", "first-2"] and seen == [(1, 2), (2, 2)]
    assert all(p.png.startswith(b"\x89PNG") and p.svg.startswith("<?xml") for p in pictures.values())
    assert not re.search(r"https?://(?!www\.w3\.org)", "".join(p.inline for p in pictures.values()))


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    assert not is_report(tmp_path / "none") and not is_report(tmp_path)
    document = report_document({"model": "m"}, [section()])
    (tmp_path / "report.json").write_text(json.dumps(document, indent=2))
    (tmp_path / "index.html").write_text("")
    assert is_report(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    assert not is_report(tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "report.json").write_text('{"kind": "my own"}')
    assert not is_report(tmp_path)
