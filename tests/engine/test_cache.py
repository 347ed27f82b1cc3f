from collections.abc import Callable

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine.cache import SlotCache
from coterie.engine.runner import Runner
from coterie.kernels import cpu
from coterie.model import Transformer
from coterie.model.attention import WholeSequences


def cache_of(window: int | None = None) -> SlotCache:
    config = ModelConfig(
        vocab_size=8,
        hidden_size=2,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=window,
    )
    return SlotCache(config, torch.float32)


def keys(*numbers: float) -> torch.Tensor:
    """[T, 1, 2], a recognisable key for each token."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)


def feed(cache: SlotCache, slot: int, *numbers: float) -> list:
    plan = cache.prefill([(slot, len(numbers))])
    plan.extend(1, keys(*numbers), keys(*numbers))
    return plan.extend(0, keys(*numbers), keys(*numbers))


def numbers(x: torch.Tensor) -> list[float]:
    return x[..., 0, 0].flatten().tolist()


def test_the_worked_example_of_the_ring() -> None:
    cache = cache_of(window=4)
    feed(cache, 0, 0, 1, 2, 3, 4, 5)
    assert numbers(cache.k[0][0]) == [4, 5, 2, 3]
    (segment,) = feed(cache, 0, 6, 7, 8)
    assert numbers(segment.k_BCGP) == [3, 4, 5, 6, 7, 8]
    assert segment.mask_BSC.int().tolist() == [[[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]]
    assert numbers(cache.k[0][0]) == [8, 5, 6, 7]
    assert numbers(cache.held(0, 0)[0]) == [5, 6, 7, 8] == numbers(cache.held(1, 0)[1])


def test_one_token_in_the_ring_sees_the_window_without_a_mask() -> None:
    cache = cache_of(window=4)
    feed(cache, 0, 0, 1, 2, 3, 4, 5)
    plan = cache.decode(1)
    (segment,) = plan.extend(0, keys(6), keys(6))
    assert plan.positions_T.tolist() == [6]
    assert sorted(numbers(segment.k_BCGP)) == [3, 4, 5, 6] and segment.mask_BSC is None and not segment.is_causal


def test_the_ring_never_grows_past_the_window() -> None:
    cache = cache_of(window=100)
    feed(cache, 0, *range(1000))
    for i in range(300):
        cache.decode(1).extend(0, keys(i), keys(i))
    assert cache.n_places == 100
    assert all(store.numel() == 1 * 100 * 1 * 2 for store in (*cache.k, *cache.v))


@pytest.mark.parametrize("window", [1, 3, 4, None])
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [2, 3, 4], [4, 5], [8, 1], [3, 6]])
def test_any_chunks_leave_the_same_cache(window: int | None, chunks: list[int]) -> None:
    at_once, in_chunks, start = cache_of(window), cache_of(window), 0
    feed(at_once, 0, *range(9))
    for n in chunks:
        feed(in_chunks, 0, *range(start, start + n))
        start += n
    assert torch.equal(at_once.k[0], in_chunks.k[0]) and at_once.lengths == in_chunks.lengths == [9]
    kept = 9 if window is None else window
    assert numbers(in_chunks.held(0, 0)[0]) == list(range(9 - kept, 9))


def test_the_store_grows_by_doubling_and_keeps_what_is_there() -> None:
    cache = cache_of()
    feed(cache, 0, *range(64))
    assert cache.n_places == 64
    feed(cache, 0, 64)
    assert cache.n_places == 128 and numbers(cache.held(0, 0)[0]) == list(range(65))
    cache.reserve(3, 10)
    assert cache.k[1].shape[0] == 3 and cache.lengths == [65, 0, 0]


def test_sequences_of_several_lengths_are_one_masked_segment() -> None:
    cache = cache_of()
    feed(cache, 0, 10)
    feed(cache, 1, 20, 21, 22)
    plan = cache.decode(2)
    (segment,) = plan.extend(0, keys(11, 23), keys(11, 23))
    assert plan.positions_T.tolist() == [1, 3]
    assert segment.k_BCGP[..., 0, 0].tolist() == [[10, 11, 0, 0], [20, 21, 22, 23]]
    assert segment.mask_BSC.int().tolist() == [[[1, 1, 0, 0]], [[1, 1, 1, 1]]]


def test_prompts_of_several_sequences_are_a_segment_each() -> None:
    cache = cache_of()
    feed(cache, 1, 20)
    plan = cache.prefill([(0, 2), (1, 2)])
    first, second = plan.extend(0, keys(10, 11, 21, 22), keys(10, 11, 21, 22))
    assert plan.positions_T.tolist() == [0, 1, 1, 2]
    assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 4)
    assert first.is_causal and first.mask_BSC is None and numbers(first.k_BCGP) == [10, 11]
    assert second.mask_BSC.int().tolist() == [[[1, 1, 0], [1, 1, 1]]] and numbers(second.k_BCGP) == [20, 21, 22]


def test_copy_and_move() -> None:
    cache = cache_of(window=4)
    cache.reserve(3, 4)
    feed(cache, 0, *range(6))
    cache.copy(0, 2)
    cache.move(2, 1)
    assert cache.lengths == [6, 6, 0]
    assert numbers(cache.held(1, 1)[0]) == numbers(cache.held(1, 0)[0]) == [2, 3, 4, 5]
    cache.move(1, 1)
    assert cache.lengths == [6, 0, 0]


def test_a_cleared_slot_hides_what_was_there() -> None:
    cache = cache_of()
    feed(cache, 0, *range(5))
    cache.clear(0)
    (segment,) = feed(cache, 0, 7)
    assert numbers(segment.k_BCGP) == [7]


def test_whole_texts() -> None:
    (segment,) = WholeSequences(2, None).extend(0, keys(*range(6)), keys(*range(6)))
    assert (
        segment.k_BCGP[..., 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]] and segment.is_causal and segment.mask_BSC is None
    )
    (segment,) = WholeSequences(2, 2).extend(0, keys(*range(6)), keys(*range(6)))
    assert segment.mask_BSC.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]] and not segment.is_causal
    assert WholeSequences(1, 3).extend(0, keys(1, 2, 3), keys(1, 2, 3))[0].is_causal


@pytest.mark.parametrize("window", [None, 5])
def test_a_cache_narrower_than_the_activations(window: int | None, make_model: Callable[..., Transformer]) -> None:
    """Packed models compute in float32 and keep float16: without native kernels, several of them at once failed."""
    model = make_model(sliding_window=window)
    model.cache_dtype = torch.float16
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
