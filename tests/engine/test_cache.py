from collections.abc import Callable

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine.cache import PagedCache
from coterie.engine.runner import Runner
from coterie.errors import ResourceError
from coterie.kernels import cpu
from coterie.kernels.pages import PAGE
from coterie.model import Transformer
from coterie.model.attention import WholeSequences


def cache_of(window: int | None = None, n_pages: int | None = None) -> PagedCache:
    config = ModelConfig(
        vocab_size=8,
        hidden_size=2,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=window,
    )
    return PagedCache(config, torch.float32, n_pages=n_pages)


def keys(*numbers: float) -> torch.Tensor:
    """[T, 1, 2], a recognisable key for each token."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)


def feed(cache: PagedCache, slot: int, *numbers: float) -> list:
    plan = cache.prefill([(slot, len(numbers))])
    plan.extend(1, keys(*numbers), keys(*numbers))
    return plan.extend(0, keys(*numbers), keys(*numbers))


def numbers(x: torch.Tensor) -> list[float]:
    return x[..., 0, 0].flatten().tolist()


def held(cache: PagedCache, slot: int) -> list[float]:
    found = numbers(cache.held(0, slot)[0])
    assert numbers(cache.held(1, slot)[1]) == found
    return found


def test_the_worked_example_of_sharing() -> None:
    cache = cache_of()
    feed(cache, 0, *range(70))
    cache.reserve(2)
    cache.copy(0, 1)
    assert cache._held == [[0, 1], [0, 1]] and cache.n_free == cache.n_pages - 2
    feed(cache, 1, 1000)
    assert cache._held == [[0, 1], [0, 2]]
    feed(cache, 0, 2000)
    assert cache._held == [[0, 1], [0, 2]], "the last one to write needs no copy"
    assert held(cache, 0) == [*range(70), 2000] and held(cache, 1) == [*range(70), 1000]
    cache.truncate(1, 64)
    assert cache._held == [[0, 1], [0]] and held(cache, 1) == list(range(64))


def test_what_is_out_of_the_window_is_given_back() -> None:
    cache = cache_of(window=100, n_pages=None)
    feed(cache, 0, *range(1000))
    for i in range(300):
        cache.decode(1).extend(0, keys(i), keys(i))
        assert cache.n_pages - cache.n_free <= 17
    assert cache.n_pages - cache.n_free == 3 and numbers(cache.held(0, 0)[0]) == list(range(200, 300))


@pytest.mark.parametrize("window", [None, 1, 64, 65, 100])
@pytest.mark.parametrize("chunk", [1, 7, 64, 200])
def test_no_sequence_needs_more_pages_than_foretold(window: int | None, chunk: int) -> None:
    cache, n = cache_of(window), 400
    most = cache.pages_for(n, chunk)
    fixed = cache_of(window, n_pages=most)
    for start in range(0, n, chunk):
        feed(fixed, 0, *range(start, min(start + chunk, n)))
    assert fixed.lengths == [n] and fixed.n_pages == most


@pytest.mark.parametrize("window", [1, 3, 64, 70, None])
@pytest.mark.parametrize("chunks", [[150], [1] * 150, [64, 64, 22], [63, 1, 86], [100, 50]])
def test_any_chunks_leave_the_same_cache(window: int | None, chunks: list[int]) -> None:
    in_chunks, start = cache_of(window), 0
    for n in chunks:
        feed(in_chunks, 0, *range(start, start + n))
        start += n
    kept = 150 if window is None else window
    assert in_chunks.lengths == [150] and held(in_chunks, 0) == list(range(150 - kept, 150))


def test_the_store_grows_by_doubling_and_keeps_what_is_there() -> None:
    cache = cache_of()
    feed(cache, 0, *range(PAGE))
    assert cache.n_pages == 1
    feed(cache, 0, 64)
    assert cache.n_pages == 2 and held(cache, 0) == list(range(65))
    feed(cache, 0, *range(65, 129))
    assert cache.n_pages == 4
    cache.reserve(3, 1000)
    assert cache.n_free >= 16 and cache.lengths == [129, 0, 0] and held(cache, 0) == list(range(129))


def test_a_fixed_cache_that_is_full_says_so_and_stays_usable() -> None:
    cache = cache_of(n_pages=2)
    feed(cache, 0, *range(100))
    with pytest.raises(ResourceError, match="all 2 pages of 64 tokens are in use"):
        cache.prefill([(0, 10), (1, 5)])
    assert cache.lengths == [100, 0] and cache.n_free == 0
    feed(cache, 0, *range(100, 110))
    assert held(cache, 0) == list(range(110))
    cache.clear(0)
    assert cache.n_free == 2


def test_copy_and_move() -> None:
    cache = cache_of(window=4)
    cache.reserve(3)
    feed(cache, 0, *range(6))
    cache.copy(0, 2)
    cache.move(2, 1)
    assert cache.lengths == [6, 6, 0]
    assert held(cache, 1) == held(cache, 0) == [2, 3, 4, 5]
    cache.move(1, 1)
    assert cache.lengths == [6, 0, 0] and cache.n_pages - cache.n_free == 1


def test_a_cleared_slot_hides_what_was_there() -> None:
    cache = cache_of()
    feed(cache, 0, *range(5))
    cache.clear(0)
    (segment,) = feed(cache, 0, 7)
    assert numbers(segment.k_BCGP) == [7]


def test_a_text_begins_with_what_another_one_held() -> None:
    cache = cache_of()
    ids = list(range(150))
    feed(cache, 0, *ids)
    cache.remember(0, ids)
    assert cache.match(ids) == 149 and cache.match(ids, "other") == 0 and cache.match([9, *ids]) == 0
    other = [*ids[:140], 7, 7, 7]
    cache.reserve(2)
    assert cache.adopt(1, other) == 140 and held(cache, 1) == ids[:140]
    assert cache._held[1][:2] == cache._held[0][:2] and cache._held[1][2] != cache._held[0][2]
    feed(cache, 0, 150)
    feed(cache, 1, 7, 7, 7)
    assert held(cache, 0) == [*ids, 150] and held(cache, 1) == other
    cache.clear(0)
    cache.clear(1)
    assert cache.n_free == cache.n_pages and cache.match(ids) == 149, "pages that nobody uses stay"


def test_the_next_turn_goes_on_in_the_same_page() -> None:
    cache = cache_of(n_pages=1)
    feed(cache, 0, *range(10))
    cache.remember(0, range(10))
    cache.clear(0)
    assert cache.adopt(0, [*range(10), 10, 11]) == 10
    feed(cache, 0, 10, 11)
    cache.remember(0, range(12))
    cache.clear(0)
    assert cache.match(range(13)) == 12 and cache.n_free == 1


def test_what_was_released_longest_ago_goes_first_and_the_end_of_a_text_before_its_beginning() -> None:
    cache = cache_of(n_pages=4)
    for start in (0, 1000):
        feed(cache, 0, *range(start, start + 128))
        cache.remember(0, range(start, start + 128))
        cache.clear(0)
    assert cache.n_free == 4
    feed(cache, 0, *range(5))
    assert cache.match(range(200)) == 64 and cache.match(range(1000, 1200)) == 128
    feed(cache, 0, *range(100))
    assert cache.match(range(200)) == 0 and cache.match(range(1000, 1200)) == 128


def test_without_a_page_to_spare_what_was_remembered_is_written_over() -> None:
    cache = cache_of(n_pages=1)
    feed(cache, 0, *range(20))
    cache.remember(0, range(20))
    cache.truncate(0, 10)
    feed(cache, 0, 99)
    assert held(cache, 0) == [*range(10), 99] and cache.match(range(21)) == 0


def test_a_window_shares_what_it_still_sees() -> None:
    """The first pages are gone; a text that goes on far behind them needs none of them."""
    cache = cache_of(window=70, n_pages=8)
    ids = list(range(300))
    for i in range(0, 300, 50):
        feed(cache, 0, *ids[i : i + 50])
    cache.remember(0, ids)
    assert cache._held[0][:2] == [-1, -1]
    assert cache.match([*ids, 5, 6]) == 300
    assert cache.match([*ids[:180], 5, 6]) == 0, "its window would see what is gone"
    cache.reserve(2)
    assert cache.adopt(1, [*ids, 5, 6]) == 300 and held(cache, 1) == held(cache, 0)


def test_whole_texts() -> None:
    (segment,) = WholeSequences(2, None).extend(0, keys(*range(6)), keys(*range(6)))
    assert (
        segment.k_BCGP[..., 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]] and segment.is_causal and segment.mask_BSC is None
    )
    (segment,) = WholeSequences(2, 2).extend(0, keys(*range(6)), keys(*range(6)))
    assert segment.mask_BSC.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]] and not segment.is_causal
    assert WholeSequences(1, 3).extend(0, keys(1, 2, 3), keys(1, 2, 3))[0].is_causal


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("window", [None, 5])
def test_a_cache_narrower_than_the_activations(
    window: int | None, dtype: torch.dtype, make_model: Callable[..., Transformer]
) -> None:
    """Packed models compute in float32 and keep float16: without native kernels, several of them at once failed."""
    model = make_model(sliding_window=window)
    model.cache_dtype = dtype
    ids = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    with cpu.use("reference"):
        runner, alone = Runner(model), [Runner(model), Runner(model)]
        runner.feed(list(enumerate(ids)))
        for one, part in zip(alone, ids, strict=True):
            one.feed([(0, part)])
        for step in ([3, 4], [20, 30]):
            together = runner.step(step).hidden_TD
            for i, one in enumerate(alone):
                torch.testing.assert_close(together[i : i + 1], one.step([step[i]]).hidden_TD, rtol=1e-4, atol=1e-4)
