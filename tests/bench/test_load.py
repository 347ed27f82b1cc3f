"""When requests are sent, how many at once, and what is left of a load that was stopped."""

import asyncio
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from coterie.bench.load import Run, arrivals, run_load
from coterie.bench.prompts import Prompt

PROMPT = Prompt({"prompt": "x", "max_tokens": 2})


def loaded(api: Callable[..., Any], answer: Any, n: int, **options: Any) -> Any:
    async def run() -> tuple[Run, Any]:
        async with api({"/v1/completions": answer}) as fake:
            return await run_load(fake.client, "/v1/completions", [PROMPT] * n, {}, **options), fake

    return asyncio.run(run())


def test_all_at_once_or_so_many_at_a_time(api: Callable[..., Any], answers: Any) -> None:
    told: list[tuple[int, int]] = []
    run, fake = loaded(api, answers.tokens("ab", 0.02), 12, on_done=lambda *args: told.append(args))
    assert len(run.outcomes) == 12 and not run.is_stopped and all(o.error is None for o in run.outcomes)
    assert fake.most_open == 12 and told == [(i, 12) for i in range(1, 13)]
    run, fake = loaded(api, answers.tokens("ab", 0.02), 12, max_concurrency=3)
    assert len(run.outcomes) == 12 and fake.most_open == 3
    assert all(o.ttft < run.seconds / 2 for o in run.outcomes)  # waiting for a place is not waiting for the server


def test_a_rate_is_kept_whatever_the_server_does(api: Callable[..., Any], answers: Any) -> None:
    due = [0.0, 0.1, 0.2]
    run, fake = loaded(api, answers.tokens("a", 1.0), 3, due=due)
    starts = sorted(o.started - run.began for o in run.outcomes)
    assert all(a >= b for a, b in zip(starts, due, strict=True)) and fake.most_open == 3


def test_stopping_keeps_what_has_ended(api: Callable[..., Any], answers: Any) -> None:
    stop = asyncio.Event()

    def on_done(done: int, total: int) -> None:
        if done == 3:
            stop.set()

    run, _ = loaded(api, answers.tokens("ab", 0.02), 1000, max_concurrency=2, stop=stop, on_done=on_done)
    assert run.is_stopped and 3 <= len(run.outcomes) < 10 and run.seconds > 0
    stop.set()
    run, _ = loaded(api, answers.tokens("ab", 30), 3, stop=stop)
    assert run.is_stopped and run.outcomes == []


def test_some_fail_and_the_others_count(api: Callable[..., Any], answers: Any) -> None:
    run, _ = loaded(api, answers.reply(b'{"error": "busy"}', 429), 4)
    assert [o.error for o in run.outcomes] == ["status 429: busy"] * 4 and not run.is_stopped


def test_a_fault_of_our_own_is_raised(api: Callable[..., Any], answers: Any) -> None:
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loaded(api, answers.tokens("a"), 2, on_done=broken)


def test_arrivals_are_a_poisson_process() -> None:
    assert arrivals(3, math.inf, 0) == [0, 0, 0]
    times = arrivals(20_001, 5.0, 1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0 and statistics.fmean(gaps) == pytest.approx(0.2, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(0.2, rel=0.03)
    assert arrivals(50, 5.0, 1) == times[:50] != arrivals(50, 5.0, 2)
