"""The worker with a small random model: what comes out, what is refused, and every way in which a request can end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from coterie.api import LanguageModel
from coterie.engine.request import Request, SamplingParams
from coterie.engine.sequence import Event
from coterie.server.failures import ApiError
from coterie.server.settings import Settings
from coterie.server.ticket import Ticket
from coterie.server.worker import Worker

T = TypeVar("T")


class Counts:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.n_tokens, self.finished, self.rejected = 0, [], []

    def on_events(self, ticket: Ticket, events: list[Event], now: float) -> None:
        self.n_tokens += sum(e.token_id is not None for e in events)

    def on_finish(self, ticket: Ticket) -> None:
        self.finished.append(ticket.finish_reason)

    def on_reject(self, reason: str) -> None:
        self.rejected.append(reason)


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., Any], byte_tokenizer: Any) -> LanguageModel:
    return LanguageModel(make_model(max_position_embeddings=8192, sliding_window=None), byte_tokenizer)


@pytest.fixture
def make_worker(lm: LanguageModel) -> Iterator[Callable[..., Worker]]:
    workers = []

    def make(**settings: Any) -> Worker:
        workers.append(Worker(lm, Settings(**settings), Counts()))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()
        assert not worker._thread.is_alive()


def request(n_tokens: int = 5, prompt: str = "The king", owner: str = "", **params: Any) -> Request:
    ids = (1, *(3 + b for b in prompt.encode()))
    never = {"logit_bias": {2: -100}} if params.pop("endless", True) else {}
    return Request(ids, SamplingParams(max_tokens=n_tokens, **never, **params), context_ids=ids, owner=owner)


def run(work: Awaitable[T]) -> T:
    async def with_limit() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(with_limit())


async def text_of(ticket: Ticket) -> str:
    async with ticket:
        return "".join([event.text async for event in ticket])


async def until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_the_text_is_that_of_the_engine(make_worker: Callable[..., Worker], lm: LanguageModel) -> None:
    worker = make_worker()
    prompts = [f"The king {i}" for i in range(8)]

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(text_of(worker.submit(request(20, p))) for p in prompts))

    expected = [lm.generate(p, max_tokens=20, logit_bias={2: -100}).text for p in prompts]
    assert run(all_of_them()) == expected
    counts: Any = worker.observer
    assert counts.finished == ["length"] * 8 and counts.n_tokens == 160 and worker.n_in_flight == 0


def test_one_wake_up_a_step_brings_all_samples(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()

    async def batches() -> list[list[Event]]:
        async with worker.submit(request(6, n=3, temperature=1.0, seed=1)) as ticket:
            return [batch async for batch in ticket.batches()]

    events = [e for batch in run(batches()) for e in batch]
    for sample in range(3):
        mine = [e for e in events if e.sample == sample]
        assert (
            len(mine) == 6 and [e.finish_reason for e in mine[:-1]] == [None] * 5 and mine[-1].finish_reason == "length"
        )


@pytest.mark.parametrize("after", ["at once", "queued", "prompt", "decode"])
def test_cancel_wherever_it_is(make_worker: Callable[..., Worker], after: str) -> None:
    worker = make_worker(max_live=1)

    async def cancel() -> None:
        blocker = worker.submit(request(4000)) if after == "queued" else None
        ticket = worker.submit(request(4000, "a" * 4000 if after == "prompt" else "a"))
        if after == "queued":
            assert blocker is not None
            await until(lambda: blocker.first_token_at is not None)
        elif after == "prompt":
            await asyncio.sleep(0.01)
        elif after == "decode":
            await until(lambda: ticket.n_written > 3)
        ticket.cancel()
        ticket.cancel()
        assert [e async for e in ticket] in ([], [e for e in [] if e]) or after == "decode"
        if blocker is not None:
            assert worker.n_in_flight == 1
            blocker.cancel()
        await until(lambda: worker.engine.is_idle and not worker._works)
        assert worker.n_in_flight == 0 and ticket.finish_reason == "abort"

    run(cancel())


def test_a_ticket_does_not_outlive_its_task(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()

    async def careless() -> None:
        worker.submit(request(4000))

    async def outer() -> None:
        await asyncio.create_task(careless())
        await until(lambda: worker.engine.is_idle and worker.n_in_flight == 0)

    run(outer())


def test_the_queue_has_an_end_by_requests(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(max_live=1, max_queue_requests=3)

    async def overflow() -> None:
        tickets = [worker.submit(request(4000))]
        await until(lambda: tickets[0].started_at is not None)
        tickets += [worker.submit(request(1)) for _ in range(3)]
        assert not worker.is_open
        with pytest.raises(ApiError) as e:
            worker.submit(request(1))
        assert (e.value.status, e.value.code, e.value.type) == (429, "queue_full", "rate_limit_error")
        assert 1 <= int(e.value.headers["retry-after"]) <= 120 and "3 requests" in e.value.message
        tickets[0].cancel()
        assert all(await asyncio.gather(*map(text_of, tickets[1:])))
        assert worker.is_open

    run(overflow())
    assert worker.observer.rejected == ["queue_full"]  # type: ignore[attr-defined]


def test_the_queue_has_an_end_by_prompt_tokens(make_worker: Callable[..., Worker]) -> None:
    """But one that is longer than the limit alone is taken when nobody waits."""
    worker = make_worker(max_live=1, max_queue_tokens=100)

    async def overflow() -> None:
        first = worker.submit(request(4000, "a" * 500))
        await until(lambda: first.started_at is not None)
        second = worker.submit(request(1, "a" * 80))
        with pytest.raises(ApiError, match="100 prompt tokens"):
            worker.submit(request(1, "a" * 30))
        first.cancel()
        await text_of(second)

    run(overflow())


def test_one_key_cannot_have_it_all(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(per_key_in_flight=2)

    async def greedy() -> None:
        for _ in range(2):
            worker.submit(request(4000, owner="alice"))
        with pytest.raises(ApiError) as e:
            worker.submit(request(1, owner="alice"))
        assert (e.value.status, e.value.code) == (429, "too_many_in_flight")
        await text_of(worker.submit(request(1, owner="bob")))

    run(greedy())


def test_what_the_engine_refuses_is_raised_before_anything_else(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    with pytest.raises(ApiError) as e:
        run(text_of_submitted(worker, request(10_000)))
    assert (e.value.status, e.value.code) == (400, "context_length_exceeded") and "8192" in e.value.message


def test_what_no_cache_of_this_size_holds_is_refused(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(cache_tokens=256)
    with pytest.raises(ApiError) as e:
        run(text_of_submitted(worker, request(1000)))
    assert (e.value.status, e.value.code, e.value.param) == (400, "too_large_for_cache", "max_tokens")
    assert run(text_of_submitted(worker, request(50)))


async def text_of_submitted(worker: Worker, wanted: Request) -> str:
    return await text_of(worker.submit(wanted))


class Faulty:
    """The engine, but its `step` fails on a given call, and perhaps always after."""

    def __init__(self, engine: Any, at: int):
        self._engine, self._left = engine, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Event]:
        self._left -= 1
        if self._left <= 0:
            raise RuntimeError("a secret of the engine")
        return self._engine.step()


def test_a_step_that_fails_takes_those_in_it_and_nobody_after(
    make_worker: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker()

    async def fail_in_the_midst() -> None:
        worker.engine = Faulty(worker.engine, 5)  # type: ignore[assignment]
        events = [e async for e in worker.submit(request(50))]
        assert events[-1].finish_reason == "error" and "try it again" in (events[-1].error or "")
        assert "secret" not in (events[-1].error or "")
        assert len(events) > 1 and worker.is_ready
        assert await text_of(worker.submit(request(3)))

    run(fail_in_the_midst())
    assert "a secret of the engine" in caplog.text
    assert worker.observer.finished == ["error", "length"]  # type: ignore[attr-defined]


def test_a_failure_before_the_first_token_is_a_status(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    worker.engine = Faulty(worker.engine, 1)  # type: ignore[assignment]
    with pytest.raises(ApiError) as e:
        run(text_of_submitted(worker, request(5)))
    assert (e.value.status, e.value.code) == (500, "engine_error")


def test_a_cancel_that_fails_is_not_the_end_of_the_worker(
    make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()

    def fail(number: int) -> None:
        raise RuntimeError("cannot")

    async def cancel() -> None:
        monkeypatch.setattr(worker.engine, "cancel", fail)
        ticket = worker.submit(request(8000))
        await until(lambda: ticket.n_written > 0)
        ticket.cancel()
        await until(lambda: len(worker._failed_at) == 1)
        assert await text_of(worker.submit(request(3)))

    run(cancel())


def test_three_failures_make_it_unready(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    for n in range(3):
        assert worker.is_ready, n
        worker.engine = Faulty(worker.engine, 1)  # type: ignore[assignment]
        with pytest.raises(ApiError):
            run(text_of_submitted(worker, request(5)))
    assert not worker.is_ready
    worker._failed_at.extend([time.monotonic() - 1000] * 3)
    assert worker.is_ready


def test_waiting_has_an_end(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(max_live=1, queue_timeout=0.05)

    async def wait() -> None:
        worker.submit(request(8000, "a"))
        await asyncio.sleep(0.03)
        with pytest.raises(ApiError) as e:
            await text_of(worker.submit(request(1)))
        assert (e.value.status, e.value.code) == (504, "queue_timeout")

    run(wait())


def test_writing_has_an_end(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(total_timeout=0.2)

    async def write() -> list[Event]:
        return [e async for e in worker.submit(request(8000))]

    events = run(write())
    assert events[-1].finish_reason == "error" and "limit" in (events[-1].error or "") and len(events) > 1


def test_an_answer_that_nobody_reads_ends(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(reader_buffer=2000)

    async def read_late() -> None:
        async with worker.submit(request(8000)) as ticket:
            await until(lambda: ticket.is_done)
            assert ticket._n_buffered < 3000
            with pytest.raises(ApiError) as e:
                async for _ in ticket.batches():
                    pass
            assert e.value.code == "slow_reader"
        await until(lambda: worker.engine.is_idle)

    run(read_late())


def test_fail_all_tells_everybody(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(max_live=1)

    async def shut_down() -> None:
        first, second = worker.submit(request(8000)), worker.submit(request(8000))
        events = []
        async for batch in first.batches():
            events += batch
            if len(events) >= 3:
                worker.fail_all(ApiError(503, "closing", code="draining"))
        assert (events[-1].finish_reason, events[-1].error) == ("error", "closing")
        with pytest.raises(ApiError, match="closing"):
            await text_of(second)
        worker.close()
        with pytest.raises(ApiError) as e:
            worker.submit(request())
        assert e.value.status == 503

    run(shut_down())


def test_retry_after_is_the_rate_at_which_requests_end(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker(max_live=1)
    now = time.monotonic()
    worker._finished_at.extend(now - 40 + 2 * i for i in range(20))  # the last 2 s ago: 19 in 40 s

    async def wait() -> None:
        first = worker.submit(request(8000))
        await until(lambda: first.started_at is not None)
        for _ in range(10):
            worker.submit(request(1))
        assert worker._seconds_to_wait() == pytest.approx(10 * 40 / 19, rel=0.1)

    run(wait())
