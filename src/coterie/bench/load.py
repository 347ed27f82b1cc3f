"""The load itself: when each request is sent, and how many are under way.

With a rate, requests come as a Poisson process, whatever the server does (an open load); with a bound on those under
way, the next one waits for a place, and its time starts when it has it.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.bench.client import Client
from coterie.bench.outcome import Outcome, ask
from coterie.bench.prompts import Prompt

__all__ = ["Run", "arrivals", "run_load"]


class Run:
    """What a load has brought so far: outcomes in the order in which they ended. Usable after it was stopped."""

    def __init__(self, n_asked: int):
        self.n_asked = n_asked
        self.outcomes: list[Outcome] = []
        self.began = self.ended = time.perf_counter()
        self.is_stopped = False

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def arrivals(n: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each of n requests is due: all at once, or on average `rate` a second."""
    if math.isinf(rate):
        return [0.0] * n
    rng = random.Random(seed)
    times, at = [], 0.0
    for _ in range(n):
        times.append(at)
        at += rng.expovariate(rate)
    return times


async def run_load(
    client: Client,
    endpoint: str,
    prompts: Sequence[Prompt],
    body: Mapping[str, Any],
    *,
    due: Sequence[float] | None = None,
    max_concurrency: int | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
    stop: asyncio.Event | None = None,
) -> Run:
    """Send all prompts and read all answers; `stop` set leaves those under way and returns the rest."""
    run = Run(len(prompts))
    places: Any = contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)

    async def one(prompt: Prompt, at: float) -> None:
        if (wait := run.began + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        async with places:
            outcome = await ask(client, endpoint, prompt, body)
        run.outcomes.append(outcome)
        run.ended = time.perf_counter()
        on_done(len(run.outcomes), len(prompts))

    run.began = run.ended = time.perf_counter()
    tasks = [asyncio.ensure_future(one(p, at)) for p, at in zip(prompts, due or [0.0] * len(prompts), strict=True)]
    try:
        await _until(tasks, stop or asyncio.Event())
    finally:
        run.is_stopped = not all(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return run


async def _until(tasks: "Sequence[asyncio.Task[None]]", stop: asyncio.Event) -> None:
    """All done, one of them failed (a bug of ours), or `stop` set."""
    stopped = asyncio.ensure_future(stop.wait())
    whole = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
    try:
        await asyncio.wait((stopped, whole), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        whole.cancel()
