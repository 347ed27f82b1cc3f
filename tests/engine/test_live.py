"""Slots, samples and what is kept, with a fake model."""

from types import SimpleNamespace

from coterie.engine import Engine
from coterie.errors import ResourceError


def slots(engine: Engine) -> list[int]:
    return [s.slot for s in engine._live.sequences]


def test_slots_stay_without_holes(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(eos_token_id=None))
    lengths = (3, 1, 5, 2, 4)
    for n in lengths:
        engine.add(counting.request("a", max_tokens=n))
    for step in range(1, 6):
        engine.step()
        assert slots(engine) == list(range(sum(n > step for n in lengths)))
    assert engine.is_idle


def test_a_sample_that_cannot_begin_ends_alone(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(eos_token_id=None))
    copy = engine.runner.cache.copy

    def fails_for_2(source: int, target: int) -> None:
        if target == 2:
            engine.runner.cache.copy = copy  # type: ignore[method-assign]
            raise ResourceError("the cache is full")
        copy(source, target)

    engine.runner.cache.copy = fails_for_2  # type: ignore[method-assign]
    engine.add(counting.request("a", max_tokens=3, n=4))
    found = counting.finish(engine)
    assert [found[0, i].end for i in range(4)] == ["length", "length", "error", "length"]
    assert found[0, 2].error == "the cache is full" and found[0, 3].ids == found[0, 0].ids


def test_what_a_cancelled_request_has_read_is_kept(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(), chunk=64, cache_tokens=640)
    number = engine.add(counting.request("k" * 200, max_tokens=3))
    engine.step()
    engine.cancel(number)
    assert engine.is_idle and engine.cache_usage == 0
    again = engine.add(counting.request("k" * 200, max_tokens=3))
    assert counting.finish(engine)[again, 0].n_cached == [64]


def test_samples_are_told_what_was_at_hand(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(), cache_tokens=640)
    for _ in range(2):
        number = engine.add(counting.request("k" * 70, max_tokens=2, n=3))
        found = counting.finish(engine)
        assert [found[number, i].n_cached for i in range(3)] == [[69 * number]] * 3


def test_without_sharing_nothing_is_kept(counting: SimpleNamespace) -> None:
    engine = Engine(counting.Model(), share=False)
    for _ in range(2):
        engine.add(counting.request("k" * 70, max_tokens=2))
        counting.finish(engine)
    assert (engine.stats.prefix_queries, engine.stats.cached_tokens) == (0, 0)
