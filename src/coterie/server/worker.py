"""One thread steps the engine; the event loop talks to it through two lists under one lock.

The thread takes what came in (new requests, cancelled ones) between two steps, so a cancelled request is gone within
one step, and hands all events of a step to the loop in one call. An exception that leaves `step` ends the requests that
were in it, each with a sentence, and a new engine takes over; three within ten minutes make the worker unready.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from coterie.engine.engine import Engine
from coterie.engine.request import Request
from coterie.engine.sequence import Event
from coterie.errors import CoterieError, ResourceError
from coterie.server.cache_size import cache_tokens
from coterie.server.failures import ApiError, refused, retry_after, translated, unavailable
from coterie.server.settings import Settings
from coterie.server.ticket import Ticket

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["Observer", "Worker"]

_FAILED = "the model failed while it worked on this request; nothing is wrong with the request itself, try it again"
_MOST_FAILURES, _FAILURE_SECONDS = 3, 600.0
_log = logging.getLogger("coterie.server")


class Observer(Protocol):
    """Who counts. All three are called on the event loop."""

    def on_events(self, ticket: Ticket, events: list[Event], now: float) -> None:
        """A step's events of one request, before it takes them: `ticket.last_token_at` is still the last step's."""

    def on_finish(self, ticket: Ticket) -> None:
        """It has ended; `ticket.finish_reason` is "stop", "length", "error" or "abort"."""

    def on_reject(self, reason: str) -> None:
        """It was never taken in: "queue_full", "too_many_in_flight" ..."""


class _Deaf:
    def on_events(self, ticket: Ticket, events: list[Event], now: float) -> None: ...
    def on_finish(self, ticket: Ticket) -> None: ...
    def on_reject(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Work:
    ticket: Ticket
    n_open: int  # samples without their last event


class Worker:
    """`submit` and all tickets belong to the event loop; the engine belongs to the thread."""

    def __init__(self, lm: "LanguageModel", settings: Settings, observer: Observer | None = None):
        self.lm, self.settings = lm, settings
        self.observer: Observer = observer or _Deaf()
        self.last_used = time.monotonic()
        model = lm.model
        self.cache_tokens = cache_tokens(model.config, settings, model.cache_dtype, model.device)
        self.engine = self._new_engine()
        self._tickets: set[Ticket] = set()  # the loop's
        self._works: dict[int, _Work] = {}  # by the engine's number; the thread's
        self._condition = threading.Condition()
        self._submitted: deque[Ticket] = deque()
        self._cancelled: list[Ticket] = []
        self._is_closing = False
        self._finished_at: deque[float] = deque(maxlen=65)
        self._failed_at: deque[float] = deque(maxlen=_MOST_FAILURES)
        self._step_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"coterie-{lm.name}", daemon=True)
        self._thread.start()

    # --- the event loop's side

    def submit(self, request: Request) -> Ticket:
        """Take a request in, or raise `ApiError`: 429 where too many wait, 400 where the engine could never do it."""
        self._check_room(request)
        if self._is_closing or not self._thread.is_alive():
            raise unavailable("the model is not in memory; try again", code="unloaded")
        ticket = Ticket(request, self.settings, self._cancel)
        self._tickets.add(ticket)
        self.last_used = time.monotonic()
        with self._condition:
            self._submitted.append(ticket)
            self._condition.notify()
        return ticket

    @property
    def n_in_flight(self) -> int:
        return len(self._tickets)

    @property
    def n_waiting(self) -> int:
        """Of those in flight, the ones that the engine has not begun with."""
        return sum(t.is_waiting for t in self._tickets)

    @property
    def is_ready(self) -> bool:
        """Its thread steps, and has not failed again and again."""
        since, now = self._step_since, time.monotonic()
        is_stuck = since is not None and now - since > self.settings.watchdog
        has_failed = len(self._failed_at) == _MOST_FAILURES and now - self._failed_at[0] < _FAILURE_SECONDS
        return self._thread.is_alive() and not is_stuck and not has_failed

    @property
    def is_open(self) -> bool:
        """There is room for one more to wait."""
        return self.n_waiting < self.settings.max_queue_requests

    def fail_all(self, error: ApiError) -> None:
        """End everything at once; each reader gets the sentence."""
        for ticket in list(self._tickets):
            ticket.fail(error)

    def close(self, seconds: float = 3.0) -> None:
        """Stop the thread after the step it is in. Blocks for that long at most."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join(seconds)

    def _check_room(self, request: Request) -> None:
        s = self.settings
        waiting = [t for t in self._tickets if t.is_waiting]
        n_tokens = sum(t.n_prompt for t in waiting)
        is_full = waiting and n_tokens + len(request.prompt_ids) > s.max_queue_tokens
        if len(waiting) >= s.max_queue_requests or is_full:
            limit = f"{s.max_queue_tokens} prompt tokens" if is_full else f"{s.max_queue_requests} requests"
            raise self._rejected(
                "queue_full",
                f"{len(waiting)} requests with {n_tokens} prompt tokens wait already, the limit is {limit}",
            )
        if request.owner and sum(t.request.owner == request.owner for t in self._tickets) >= s.per_key_in_flight:
            raise self._rejected(
                "too_many_in_flight", f"this key has {s.per_key_in_flight} requests in work, which is its limit"
            )

    def _rejected(self, code: str, message: str) -> ApiError:
        self.observer.on_reject(code)
        headers = {"retry-after": retry_after(self._seconds_to_wait())}
        return ApiError(429, f"{message}: try again in {headers['retry-after']} s", code=code, headers=headers)

    def _seconds_to_wait(self) -> float:
        """How long what waits now will take, at the rate at which requests have been ending."""
        if len(self._finished_at) < 2:
            return 5.0
        seconds = time.monotonic() - self._finished_at[0]
        n_waiting = sum(t.is_waiting for t in self._tickets)
        return max(1, n_waiting) * seconds / (len(self._finished_at) - 1)

    def _cancel(self, ticket: Ticket) -> None:
        self._finish(ticket)
        with self._condition:
            self._cancelled.append(ticket)
            self._condition.notify()

    def _finish(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.discard(ticket)
            self.last_used = time.monotonic()
            if ticket.finish_reason in ("stop", "length"):
                self._finished_at.append(self.last_used)
            self.observer.on_finish(ticket)

    def _deliver(self, work: list[tuple[Ticket, list[Event]]], began: float, now: float) -> None:
        """The events of a step that took from `began` to `now`."""
        for ticket, events in work:
            ticket.begin(max(began, ticket.submitted_at))  # it may have come in the middle of a step before
            self.observer.on_events(ticket, events, now)
            ticket.deliver(events, now)
            if ticket.is_done:
                self._finish(ticket)

    # --- the thread's side

    def _run(self) -> None:
        while True:
            try:
                if not self._take_in():
                    return
                if not self.engine.is_idle:
                    self._step_since = began = time.monotonic()
                    self._hand_over(self.engine.step(), began)
            except Exception:
                _log.exception("a step of %s failed", self.lm.name)
                self._start_anew()
            finally:
                self._step_since = None

    def _take_in(self) -> bool:
        """Wait for something to do and take it in; False when it is time to go."""
        with self._condition:
            while self.engine.is_idle and not (self._submitted or self._cancelled or self._is_closing):
                self._condition.wait()
            if self._is_closing:
                return False
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, []
        for ticket in submitted:
            if not ticket.is_done:
                self._add(ticket)
        for ticket in cancelled:
            number = ticket.number
            if number is not None and number in self._works and self._works[number].ticket is ticket:
                del self._works[number]  # another engine may have given the number to another
                self.engine.cancel(number)
        return True

    def _add(self, ticket: Ticket) -> None:
        try:
            ticket.number = self.engine.add(replace(ticket.request, wants_progress=True))
        except ResourceError as e:  # no cache of this size will ever hold it
            _call(ticket.loop, ticket.fail, refused("max_tokens", str(e), code="too_large_for_cache"))
        except CoterieError as e:
            _call(ticket.loop, ticket.fail, translated(e))
        except Exception:
            _log.exception("a request could not be added to %s", self.lm.name)
            _call(ticket.loop, ticket.fail, ApiError(500, _FAILED, code="engine_error"))
        else:
            self._works[ticket.number] = _Work(ticket, ticket.request.params.n)

    def _hand_over(self, events: Iterable[Event], began: float) -> None:
        """All of a step's events in one call to the loop, with the step's own times: the loop may be late."""
        now = time.monotonic()
        batches: dict[Ticket, list[Event]] = {}
        for event in events:
            if event.cause is not None and not isinstance(event.cause, CoterieError):
                _log.error("a request failed in %s", self.lm.name, exc_info=event.cause)
            if (work := self._works.get(event.request)) is not None:
                batches.setdefault(work.ticket, []).append(event)
                work.n_open -= event.finish_reason is not None
                if work.n_open == 0:
                    del self._works[event.request]
        for loop in {ticket.loop for ticket in batches}:  # one, but for tests
            mine = [(t, batch) for t, batch in batches.items() if t.loop is loop]
            _call(loop, self._deliver, mine, began, now)

    def _start_anew(self) -> None:
        self._failed_at.append(time.monotonic())
        lost, self._works = self._works, {}
        try:
            self.engine = self._new_engine()
        finally:  # without one the thread ends, and the worker is not ready
            for work in lost.values():
                _call(work.ticket.loop, work.ticket.fail, ApiError(500, _FAILED, code="engine_error"))

    def _new_engine(self) -> Engine:
        return Engine(
            self.lm.model,
            self.lm.tokenizer if self.lm.has_tokenizer else None,
            max_live=self.settings.max_live,
            cache_tokens=self.cache_tokens,
            cache_type=self.settings.cache_type,
            speculate=self.settings.speculate,
        )


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass
