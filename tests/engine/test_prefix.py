from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.prefix import Match, PrefixTree

TEXT = tuple(range(150))


def test_the_longest_beginning_page_by_page_and_then_token_by_token() -> None:
    tree = PrefixTree()
    tree.insert(TEXT, [5, 6, 7])
    assert tree.find([*TEXT, 1]) == Match(150, [5, 6], 7, 22)
    assert tree.find(TEXT) == Match(149, [5, 6], 7, 21), "one token is left to read"
    assert tree.find(TEXT[:128]) == Match(127, [5], 6, 63)
    assert tree.find([*TEXT[:70], 9, 9]) == Match(70, [5], 6, 6)
    assert tree.find([*TEXT[:128], 9, 9]) == Match(128, [5, 6])
    assert tree.find([9, *TEXT]) == tree.find([]) == tree.find([0]) == Match(0, [])


def test_salts_have_nothing_in_common() -> None:
    tree = PrefixTree()
    tree.insert(TEXT, [5, 6, 7], "a")
    assert tree.find(TEXT, "b") == tree.find(TEXT) == Match(0, [])
    assert tree.find(TEXT, "a").n == 149


def test_what_is_known_stays_where_it_is() -> None:
    tree = PrefixTree()
    tree.insert(TEXT, [5, 6, 7])
    tree.insert([*TEXT[:128], *range(64)], [1, 2, 3])
    assert tree.find([*TEXT[:128], *range(64), 0]).pages == [5, 6, 3]
    assert [tree.n_known(page) for page in (1, 2, 3, 5, 6, 7)] == [0, 0, 64, 64, 64, 22]


def test_a_page_that_was_filled_up_is_known_to_its_end() -> None:
    tree = PrefixTree()
    tree.insert(TEXT[:10], [5])
    tree.insert(TEXT[:20], [5])
    assert tree.n_known(5) == 20 and tree.find(TEXT) == Match(20, [], 5, 20)
    tree.insert(TEXT[:12], [5])
    assert tree.n_known(5) == 20
    tree.insert(TEXT, [5, 6, 7])
    assert tree.find(TEXT).pages == [5, 6]


def test_of_several_ends_the_longest() -> None:
    tree = PrefixTree()
    for n, page in ((10, 1), (30, 2), (20, 3)):
        tree.insert([*TEXT[:n], 999, 999], [page])
    assert tree.find(TEXT) == Match(30, [], 2, 30)


def test_a_forgotten_page_cuts_the_text_there() -> None:
    tree = PrefixTree()
    tree.insert(TEXT, [5, 6, 7])
    tree.forget(6)
    assert tree.find([*TEXT, 1]) == Match(64, [5]) and tree.n_known(7) == 22
    tree.insert(TEXT, [1, 2, 3])
    assert tree.find([*TEXT, 1]) == Match(150, [5, 2], 7, 22), "a hole is filled again"
    for page in (7, 2, 5):
        tree.forget(page)
    assert not tree._roots and not tree._at, "nothing is left of a text that is gone"


def test_a_window_looks_across_a_hole() -> None:
    tree = PrefixTree(window=70)
    tree.insert(TEXT, [-1, 6, 7])
    assert tree.find([*TEXT, 1]) == Match(150, [-1, 6], 7, 22)
    assert tree.find([*TEXT[:132], 9]) == Match(0, []), "token 132 sees 63"
    assert tree.find([*TEXT[:133], 9]) == Match(133, [-1, 6], 7, 5), "token 133 sees 64 and no earlier one"


def test_a_window_smaller_than_a_page_needs_only_its_last() -> None:
    tree = PrefixTree(window=3)
    tree.insert(TEXT, [-1, -1, 7])
    assert tree.find([*TEXT, 1]) == Match(150, [-1, -1], 7, 22)
    assert tree.find([*TEXT[:128], 9]) == Match(0, [])
    assert tree.find([*TEXT[:129], 9]) == Match(0, []), "token 129 sees 127"
    assert tree.find([*TEXT[:130], 9]) == Match(130, [-1, -1], 7, 2)


small = st.integers(0, 1)
pieces = st.lists(st.tuples(small, st.sampled_from([1, 30, 64])), min_size=1, max_size=4)


def spelled(parts: Sequence[tuple[int, int]]) -> list[int]:
    return [token for token, n in parts for _ in range(n)]


@settings(deadline=None)
@given(st.lists(pieces, min_size=1, max_size=6), pieces, st.data())
def test_against_a_list_of_texts(known: list, asked: list, data: st.DataObject) -> None:
    """What is found are pages that hold these very tokens, and no known text has more in common."""
    tree, holds, page = PrefixTree(), dict[int, list[int]](), 0
    texts = [spelled(parts) for parts in known]
    for text in texts:
        n = -(-len(text) // 64)
        tree.insert(text, range(page, page + n))
        holds |= {page + i: text[i * 64 : (i + 1) * 64] for i in range(n)}
        page += n
    ids = spelled(asked)
    match = tree.find(ids)
    longest = max(
        next((i for i, (a, b) in enumerate(zip(t, ids, strict=False)) if a != b), min(len(t), len(ids))) for t in texts
    )
    assert match.n == min(longest, len(ids) - 1)
    found = [token for p in match.pages for token in holds[p]] + holds.get(match.partial, [])[: match.n_copied]
    assert found == ids[: match.n]
    for gone in data.draw(st.permutations(list(tree._at))):
        tree.forget(gone)
    assert not tree._roots
