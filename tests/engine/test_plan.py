import torch

from coterie.engine.plan import Plan
from coterie.kernels.pages import PAGE, Pages
from coterie.model.attention import Segment


def store_of(n_pages: int) -> Pages:
    store = Pages(1, 1, 2, torch.float32, torch.device("cpu"))
    store.grow(n_pages)
    return store


def keys(*numbers: float) -> torch.Tensor:
    """[T, 1, 2], a recognisable key for each token."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)


def fed(store: Pages, tables: list[list[int]], *parts: tuple[int, int, list[float]], window: int | None = None) -> list:
    """The segments of a pass over (slot, first position, new keys)."""
    plan = Plan(store, torch.tensor(tables, dtype=torch.int32), [(s, f, len(new)) for s, f, new in parts], window)
    new = [x for _, _, part in parts for x in part]
    assert plan.positions_T.tolist() == [first + i for _, first, part in parts for i in range(len(part))]
    return plan.extend(0, keys(*new), keys(*new))


def seen(segment: Segment) -> list[list[float]]:
    assert torch.equal(segment.k_BCGP, segment.v_BCGP)
    return segment.k_BCGP[..., 0, 0].tolist()


def mask(segment: Segment) -> list | None:
    return None if segment.mask_BSC is None else segment.mask_BSC.int().tolist()


def test_the_worked_example_of_a_window() -> None:
    store = store_of(1)
    fed(store, [[0]], (0, 0, [0, 1, 2, 3, 4, 5]), window=4)
    (segment,) = fed(store, [[0]], (0, 6, [6, 7, 8]), window=4)
    assert seen(segment) == [[3, 4, 5, 6, 7, 8]] and not segment.is_causal
    assert mask(segment) == [[[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]]


def test_a_first_chunk_is_causal_where_no_window_cuts_it() -> None:
    for window in (None, 3, 4):
        (segment,) = fed(store_of(1), [[0]], (0, 0, [0, 1, 2]), window=window)
        assert segment.is_causal and segment.mask_BSC is None
    (segment,) = fed(store_of(1), [[0]], (0, 0, [0, 1, 2]), window=2)
    assert mask(segment) == [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]] and not segment.is_causal


def test_one_token_sees_the_window_without_a_mask() -> None:
    store = store_of(1)
    fed(store, [[0]], (0, 0, [0, 1, 2, 3, 4, 5]))
    (segment,) = fed(store, [[0]], (0, 6, [6]), window=4)
    assert seen(segment) == [[3, 4, 5, 6]] and segment.mask_BSC is None and not segment.is_causal


def test_new_tokens_of_several_lengths_are_one_segment() -> None:
    """What is missing behind the shorter is its own last key, never a number of somebody else's."""
    store = store_of(2)
    fed(store, [[1], [0]], (0, 0, [10]), (1, 0, [20, 21, 22]))
    (segment,) = fed(store, [[1], [0]], (0, 1, [11]), (1, 3, [23]))
    assert seen(segment) == [[10, 11, 11, 11], [20, 21, 22, 23]] and mask(segment) == [[[1, 1, 0, 0]], [[1, 1, 1, 1]]]
    (segment,) = fed(store, [[1], [0]], (0, 2, [12]), (1, 4, [24]), window=2)
    assert seen(segment) == [[11, 12], [23, 24]] and segment.mask_BSC is None


def test_prompts_are_a_segment_each() -> None:
    store = store_of(2)
    fed(store, [[0], [1]], (1, 0, [20]))
    first, second = fed(store, [[0], [1]], (0, 0, [10, 11]), (1, 1, [21, 22]))
    assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 4)
    assert first.is_causal and seen(first) == [[10, 11]]
    assert mask(second) == [[[1, 1, 0], [1, 1, 1]]] and seen(second) == [[20, 21, 22]]


def test_new_tokens_of_some_beside_a_prompt_of_another() -> None:
    store, tables = store_of(4), [[0], [1], [2], [3]]
    fed(store, tables, *((slot, 0, [10 * slot]) for slot in range(3)))
    parts = fed(store, tables, (0, 1, [1]), (2, 1, [21]), (1, 1, [11, 12]), (3, 0, [30]))
    assert [(s.start, s.stop) for s in parts] == [(0, 2), (2, 4), (4, 5)]
    assert [seen(s) for s in parts] == [[[0, 1], [20, 21]], [[10, 11, 12]], [[30]]]


def test_pages_that_follow_one_another_are_not_copied() -> None:
    store, text = store_of(5), [float(i) for i in range(2 * PAGE + 3)]
    for pages, is_view in (([1, 2, 3], True), ([3, 1, 2], False)):
        fed(store, [pages], (0, 0, text))
        (segment,) = fed(store, [pages], (0, len(text), [1000]))
        assert seen(segment) == [[*text, 1000]]
        assert (segment.k_BCGP.data_ptr() == store.k[0][pages[0]].data_ptr()) == is_view
