from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.analysis.text_page import PALETTE, RoutedToken, passages, sample_html, text_page
from coterie.analysis.trace import make_trace, open_trace


class Spans(HTMLParser):
    """(class, title, text) of every span."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str | None, str]] = []
        self._open: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "span":
            self._open.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found.append((self._open[-1]["class"], self._open[-1].get("title"), data))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()


def test_each_token_has_the_class_of_its_first_expert() -> None:
    tokens = [RoutedToken("<b>", (3, 1), (0.75, 0.25)), RoutedToken(" x\n", (1, -1), (1.0, 0.0)), RoutedToken("plain")]
    page = text_page("a & b", tokens, 4, 2)
    found = Spans(page).found
    assert found[4:] == [("e3", "3 (0.75), 1 (0.25)", "<b>"), ("e1", "1 (1.00)", " x\n")]
    assert [f[2].strip() for f in found[:4]] == ["0", "1", "2", "3"] and "layer 2" in page
    assert "<title>a &amp; b</title>" in page and "</span>plain</p>" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_colours_come_again_with_a_mark() -> None:
    page = text_page("t", [], 10, 0)
    assert f".e0 {{ background: {PALETTE[0]}" in page
    assert f".e8 {{ text-decoration: underline; background: {PALETTE[0]}" in page


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=50), max_size=5))
def test_any_text_is_only_text(texts: list[str]) -> None:
    page = text_page("t", [RoutedToken(t, (0,), (1.0,)) for t in texts], 1, 0)
    page.encode()
    found = Spans(page).found[1:]
    assert len(found) == sum(bool(t) for t in texts) and all(kind == "e0" for kind, _, _ in found)


def test_a_passage_of_each_domain(tmp_path: Path) -> None:
    """Documents of 2, 5 and 3 tokens; é comes as two bytes, with the second."""
    pieces = ["<s>", "▁le", "<0xC3>", "<0xA9>", "\n"]
    ids = [0, 1, 0, 1, 2, 3, 4, 0, 4, 1]
    path = make_trace(
        tmp_path / "t", experts_TLK=np.arange(20).reshape(10, 2, 1) % 4, weights_TLK=np.ones((10, 2, 1)),
        token_ids=ids, n_experts=4, documents=[0, 0, 1, 1, 1, 1, 1, 2, 2, 2], domains=["a"] * 7 + ["b"] * 3,
        pieces=pieces,
    )  # fmt: skip
    found = passages(open_trace(path), 1, 4)
    assert [(name, [t.text for t in tokens]) for name, tokens in found] == [
        ("a", ["<s>", " le", "", "é"]), ("b", ["<s>", "\n", " le"])
    ]  # fmt: skip
    assert [t.first for t in found[0][1]] == [1, 3, 1, 3]
    html = sample_html(open_trace(path), layer=1, n_tokens=4)
    assert html.count("<h3>") == 2 and "é" in html and html.endswith("</section>")


def test_without_a_vocabulary_there_is_no_text(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "t", experts_TLK=[[[0]]], weights_TLK=[[[1]]], token_ids=[0], n_experts=1)
    assert sample_html(open_trace(path)) == ""
