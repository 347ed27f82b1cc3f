"""Nothing runs out in the middle, and nothing is lost."""

import random
from types import SimpleNamespace

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine import Engine
from coterie.engine.cache import PagedCache
from coterie.engine.memory import Memory

MARK = 3 + ord("!")


def cache(window: int | None, n_pages: int = 100) -> PagedCache:
    config = ModelConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, sliding_window=window
    )
    return PagedCache(config, torch.float32, n_pages=n_pages)


@pytest.mark.parametrize(
    ("n_prompt", "params", "pages"),
    [
        (1, {"max_tokens": 63}, 1),
        (1, {"max_tokens": 64}, 2),
        (128, {"max_tokens": 0}, 2),
        (128, {"max_tokens": 1, "n": 4}, 3 + 3),  # two full pages for all, and one each
        (127, {"max_tokens": 1, "n": 4}, 2 + 3),
        (120, {"max_tokens": 20, "n": 3}, 3 + 2 * 2),
    ],
)
def test_the_worst_case_of_a_request(
    counting: SimpleNamespace, n_prompt: int, params: dict[str, int], pages: int
) -> None:
    assert Memory(cache(None), 512).worst(counting.request("a" * n_prompt, **params)) == pages


def test_a_window_limits_it(counting: SimpleNamespace) -> None:
    memory = Memory(cache(128), 64)
    assert memory.worst(counting.request("a" * 600, max_tokens=1)) == memory.worst(
        counting.request("a" * 500, max_tokens=100)
    )
    assert memory.worst(counting.request("a" * 600, max_tokens=1)) <= 5
    assert memory.worst(counting.request("a" * 600, max_tokens=1, n=2)) == 2 * memory.worst(
        counting.request("a" * 600, max_tokens=1)
    )


@pytest.mark.parametrize("window", [None, 70])
def test_one_that_fills_the_cache_may_come_again(counting: SimpleNamespace, window: int | None) -> None:
    """It shares most of its prompt with itself, and the copy of a page takes one more than there is."""
    engine = Engine(counting.Model(sliding_window=window, eos_token_id=None), cache_tokens=64 * 4, chunk=64)
    r = counting.request("k" * 130, max_tokens=62)
    assert engine._memory is not None and engine._memory.worst(r) >= 3
    engine = Engine(
        counting.Model(sliding_window=window, eos_token_id=None), cache_tokens=64 * engine._memory.worst(r), chunk=64
    )
    for _ in range(3):
        number = engine.add(r)
        assert len(counting.finish(engine)[number, 0].ids) == 62


def text(rng: random.Random) -> str:
    """Many begin alike, some to the page."""
    begin = rng.choice(["a" * 64, "b" * 100, "c" * 130, ""])
    return begin + "".join(rng.choice("xy") for _ in range(rng.choice([1, 3, 64, 90]))) + "!" * (rng.random() < 0.08)


@pytest.mark.parametrize("window", [None, 70, 200])
@pytest.mark.parametrize("seed", range(6))
def test_any_history_carries_everything_to_its_end_and_loses_no_page(
    counting: SimpleNamespace, window: int | None, seed: int
) -> None:
    rng = random.Random(seed)
    model = counting.Model(sliding_window=window, eos_token_id=None)
    model.fails_at = (MARK,) if seed % 2 else ()
    n_pages, chunk = rng.choice([8, 12, 30]), rng.choice([16, 50, 512])
    engine = Engine(model, chunk=chunk, cache_tokens=64 * n_pages, max_live=rng.choice([3, 32]))
    wanted: dict[tuple[int, int], int] = {}
    events, may_fail, left = [], set(), 40
    while left or not engine.is_idle:
        while left and rng.random() < 0.3:
            left -= 1
            r = counting.request(
                text(rng), owner=rng.choice("ab"), max_tokens=rng.choice([1, 9, 70]), n=rng.choice([1, 1, 2])
            )
            if engine._memory.worst(r) > n_pages:  # type: ignore[union-attr]
                continue
            number = engine.add(r)
            wanted |= {(number, sample): r.params.max_tokens for sample in range(r.params.n)}
            may_fail |= {number} if MARK in r.prompt_ids else set()
        events += engine.step()
        assert 0 <= engine.cache_usage <= 1
        if wanted and rng.random() < 0.03:
            gone = rng.choice(sorted(wanted))[0]
            engine.cancel(gone)
            wanted = {key: n for key, n in wanted.items() if key[0] != gone}
    found = counting.by_sample(events)
    for key, n in wanted.items():
        is_bad = model.fails_at and key[0] in may_fail
        assert (found[key].end, len(found[key].ids)) == (("error", 0) if is_bad else ("length", n)), found[key].error
    assert engine.runner.cache.n_free == n_pages and engine.cache_usage == 0
    assert engine.stats.cached_tokens > 0
