"""A ticket without a worker: events are put in by hand."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

from coterie.engine.request import Request, SamplingParams
from coterie.engine.sequence import Event
from coterie.errors import RequestError
from coterie.server.failures import ApiError
from coterie.server.settings import Settings
from coterie.server.ticket import Ticket


def run(work: Callable[[list[Ticket]], Awaitable[None]]) -> list[Ticket]:
    """The tickets that were given back to the worker."""
    cancelled: list[Ticket] = []

    async def limited() -> None:
        async with asyncio.timeout(20):
            await work(cancelled)

    asyncio.run(limited())
    return cancelled


def ticket(cancelled: list[Ticket], n: int = 1, wants_progress: bool = False, **settings: Any) -> Ticket:
    request = Request((1, 2, 3), SamplingParams(max_tokens=9, n=n), wants_progress=wants_progress)
    return Ticket(request, Settings(**settings), cancelled.append)


def token(text: str, sample: int = 0, finish_reason: str | None = None, **fields: Any) -> Event:
    return Event(0, sample, 7, text, finish_reason, **fields)


def test_steps_come_one_by_one_and_together_for_a_slow_reader() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        t = ticket(cancelled)
        t.deliver([token("a")], 1.0)
        t.deliver([token("b")], 2.0)
        batches = t.batches()
        assert [e.text for e in await anext(batches)] == ["a", "b"]
        t.deliver([token("c", finish_reason="stop")], 3.0)
        assert [e.text for e in await anext(batches)] == ["c"]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
        assert (t.started_at, t.first_token_at, t.last_token_at, t.n_written) == (1.0, 1.0, 3.0, 3)
        assert t.finish_reason == "stop" and t.is_done

    assert run(work) == []


def test_each_sample_has_its_own_end() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        t = ticket(cancelled, n=3)
        t.deliver([token("a", 0), token("b", 1, "stop"), token("c", 2)], 1.0)
        assert not t.is_done
        t.fail(ApiError(503, "closing"))
        events = [e async for e in t]
        assert [(e.sample, e.finish_reason, e.error) for e in events[3:]] == [
            (0, "error", "closing"),
            (2, "error", "closing"),
        ]

    assert len(run(work)) == 1


def test_progress_is_for_those_who_asked() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        progress = Event(0, 0, None, "", progress=(0, 3))
        for wants in (False, True):
            t = ticket(cancelled, wants_progress=wants)
            assert t.is_waiting
            t.deliver([progress], 1.0)
            assert not t.is_waiting and t.first_token_at is None
            t.deliver([token("a", finish_reason="length", n_cached=2)], 2.0)
            assert [e.progress async for e in t] == ([(0, 3), None] if wants else [None]) and t.n_cached == 2

    run(work)


@pytest.mark.parametrize(
    ("cause", "status", "code"),
    [
        (ZeroDivisionError(), 500, "engine_error"),
        (MemoryError(), 503, "out_of_memory"),
        (torch.OutOfMemoryError(), 503, "out_of_memory"),
        (RequestError("n is 3"), 400, "invalid_value"),
        (None, 500, "engine_error"),
    ],
)
def test_an_error_of_the_engine_before_the_first_token_has_a_status(cause: Any, status: int, code: str | None) -> None:
    async def work(cancelled: list[Ticket]) -> None:
        t = ticket(cancelled)
        t.deliver([Event(0, 0, None, "", "error", error="it failed", cause=cause)], 1.0)
        with pytest.raises(ApiError) as e:
            await anext(t.batches())
        assert (e.value.status, e.value.code) == (status, code)

    run(work)


def test_an_error_later_is_an_event() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        t = ticket(cancelled)
        t.deliver([token("a")], 1.0)
        t.deliver([Event(0, 0, None, "", "error", error="it failed")], 2.0)
        events = [e async for e in t]
        assert (events[-1].finish_reason, events[-1].error, t.finish_reason) == ("error", "it failed", "error")

    run(work)


def test_cancel_is_said_once() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        async with ticket(cancelled) as t:
            t.cancel()
            t.cancel()
            t.deliver([token("a")], 1.0)
            t.fail(ApiError(503, "closing"))
            assert [e async for e in t] == []
        assert t.finish_reason == "abort"

    assert len(run(work)) == 1


def test_the_timer_goes_from_turn_to_token_to_end() -> None:
    async def work(cancelled: list[Ticket]) -> None:
        limits = {"queue_timeout": 0.05, "first_token_timeout": 0.06, "total_timeout": 0.3}
        for step, code in ((0, "queue_timeout"), (1, "first_token_timeout")):
            t = ticket(cancelled, **limits)
            if step:
                t.deliver([Event(0, 0, None, "", progress=(0, 3))], time.monotonic())
            with pytest.raises(ApiError) as e:
                await anext(t.batches())
            assert (e.value.status, e.value.code) == (504, code)
        t = ticket(cancelled, **limits)
        t.deliver([token("a")], time.monotonic())
        events = [e async for e in t]
        assert events[-1].finish_reason == "error" and time.monotonic() - t.submitted_at > 0.25

    run(work)
