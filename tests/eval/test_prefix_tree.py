from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from coterie.eval.prefix_tree import Node, grow


def read(node: Node) -> list[int]:
    before = [] if node.parent is None else read(node.parent)
    assert node.first == len(before)
    return [*before, *node.ids]


def everything(roots: Sequence[Node]) -> list[Node]:
    return [found for node in roots for found in (node, *everything(node.children))]


def test_the_example_of_the_page() -> None:
    a, b, c, d, e, x = range(6)
    (root,) = grow([[a, b, c, d], [a, b, c, e], [a, b, x]], fewest=1)
    assert root.ids == [a, b] and [child.ids for child in root.children] in ([[c], [x]], [[x], [c]])
    (shared,) = (child for child in root.children if child.ids == [c])
    assert sorted(child.ids for child in shared.children) == [[d], [e]]
    assert [node.texts for node in everything([root]) if node.ids == [x]] == [[2]]


def test_a_share_that_is_short_is_read_again() -> None:
    assert len(grow([[1, 2, 3, 4], [1, 2, 3, 5]], fewest=4)) == 2
    assert len(grow([[1, 2, 3, 4], [1, 2, 3, 5]], fewest=3)) == 1


def test_equal_texts_and_whole_beginnings_share_a_node_however_short() -> None:
    (root,) = grow([[1], [1], [1, 2]], fewest=8)
    assert root.ids == [1] and sorted(root.texts) == [0, 1] and [c.texts for c in root.children] == [[2]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=20), st.integers(1, 5))
def test_every_text_is_what_lies_between_a_root_and_its_node(texts: list[list[int]], fewest: int) -> None:
    nodes = everything(grow(texts, fewest))
    assert sorted(place for node in nodes for place in node.texts) == list(range(len(texts)))
    for node in nodes:
        assert node.ids and all(texts[place] == read(node) for place in node.texts)
        assert all(child.parent is node for child in node.children)
    assert sum(len(node.ids) for node in nodes) <= sum(map(len, texts))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=10), min_size=1, max_size=20))
def test_with_shares_of_any_length_no_token_is_read_twice_after_the_same_ones(texts: list[list[int]]) -> None:
    beginnings = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert sum(len(node.ids) for node in everything(grow(texts, 1))) == len(beginnings)
