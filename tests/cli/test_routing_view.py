import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.cli.routing_view import PALETTE, RoutedToken, coloured, legend, svg, table


def test_a_line_end_is_not_painted() -> None:
    text = coloured(RoutedToken("a\nb\n", (0, 1), (0.6, 0.4)))
    assert text.plain == "a\nb\n" and [(s.start, s.end) for s in text.spans] == [(0, 1), (2, 3)]


def test_beyond_eight_experts_the_colours_come_again_with_a_mark() -> None:
    styles = {str(coloured(RoutedToken("x", (e,), (1.0,))).spans[0].style) for e in range(32)}
    assert len(styles) == 32 and len(set(PALETTE)) == 8
    assert len(legend(32, 0).spans) == 32


def test_a_token_without_experts_is_plain() -> None:
    assert coloured(RoutedToken("x")).spans == [] and coloured(RoutedToken("x", (-1,), (0.0,))).spans == []


def test_the_table() -> None:
    tokens = [RoutedToken("a\t", (3, 1), (0.75, 0.25)), RoutedToken("b", (2, -1), (1.0, 0.0)), RoutedToken("c")]
    assert table(tokens) == "0\t3:0.75 1:0.25\t'a\\t'\n1\t2:1.00\t'b'\n2\t-\t'c'\n"


def test_the_picture_breaks_full_lines() -> None:
    root = ElementTree.fromstring(svg([RoutedToken("word ", (i % 4,), (1.0,)) for i in range(40)], 4, 1))
    tops = {t.get("y") for t in root.iter() if t.tag.endswith("text")}
    assert len(tops) == 4  # 200 characters in rows of 84, and the legend


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=100), st.integers(-1, 20)), max_size=8))
def test_any_text_gives_well_formed_xml(tokens: list[tuple[str, int]]) -> None:
    ElementTree.fromstring(svg([RoutedToken(t, (e,), (1.0,)) for t, e in tokens], 8, 0).encode("utf-8", "replace"))
