"""One request on its way through a worker, as its reader sees it: batches of events, in order.

Everything here runs on the event loop; the worker's thread hands a step's events over in one call. Each sample gets
exactly one last event. What fails before the first event is raised as `ApiError`; what fails later is a last event
with finish_reason "error" and its sentence in `error`. A ticket does not outlive the task that asked for it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from coterie.engine.request import Request
from coterie.engine.sequence import Event
from coterie.errors import CoterieError
from coterie.server.failures import ApiError, translated
from coterie.server.settings import Settings

__all__ = ["Ticket"]

_EVENT_BYTES = 100  # what an event weighs besides its text and routing


def _of_engine(event: Event) -> ApiError:
    """A failure of this request before its first token, which can still be said with a status."""
    message = event.error or "the model failed on this request"
    cause = event.cause
    if isinstance(cause, CoterieError):
        return translated(cause)
    is_memory = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"  # the second is torch's
    return ApiError(503 if is_memory else 500, message, code="out_of_memory" if is_memory else "engine_error")


class Ticket:
    """Read it once, with `async with worker.submit(request) as ticket: async for events in ticket.batches()`."""

    def __init__(self, request: Request, settings: Settings, on_cancel: Callable[["Ticket"], None]):
        self.request = request
        self.number: int | None = None  # the engine's; the worker's thread sets it
        self.n_prompt = len(request.prompt_ids)
        self.n_cached = self.n_written = 0
        self.finish_reason: str | None = None  # of the sample that ended last; "abort" where its reader left
        self.submitted_at = time.monotonic()
        self.started_at: float | None = None  # the engine began to read the prompt
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.loop = asyncio.get_running_loop()
        self._settings, self._on_cancel = settings, on_cancel
        self._open = set(range(request.params.n))  # samples without a last event
        self._buffer: list[Event] = []
        self._n_buffered = 0
        self._failure: ApiError | None = None
        self._is_read = self._is_cancelled = False
        self._wake = asyncio.Event()
        self._timer = self._next_deadline()
        if (task := asyncio.current_task()) is not None:
            task.add_done_callback(lambda _: self.cancel())

    @property
    def is_done(self) -> bool:
        return not self._open or self._is_cancelled

    @property
    def is_waiting(self) -> bool:
        """The engine has not begun with it."""
        return self.started_at is None and not self.is_done

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The events of each step, or of several where the reader is slower."""
        while True:
            if self._buffer:
                batch, self._buffer, self._n_buffered = self._buffer, [], 0
                self._is_read = True
                yield batch
            elif self._failure is not None:
                raise self._failure
            elif self.is_done:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for batch in self.batches():
            for event in batch:
                yield event

    async def __aenter__(self) -> "Ticket":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop it within one step, wherever it is. From any thread's loop call, as often as one likes."""
        if self.is_done:
            return
        self._is_cancelled, self.finish_reason = True, "abort"
        self._end()

    def fail(self, error: ApiError) -> None:
        """End it with this failure."""
        if self.is_done:
            return
        if self._is_read or self._buffer:
            for sample in sorted(self._open):
                self._buffer.append(Event(0, sample, None, "", "error", error=error.message, cause=error))
        else:
            self._failure = error
        self._open.clear()
        self.finish_reason = "error"
        self._end()

    def begin(self, began: float) -> None:
        """The first step that it was in began then; later ones change nothing."""
        if self.started_at is None and not self.is_done:
            self.started_at = began
            self._restart_timer()

    def deliver(self, events: Sequence[Event], now: float) -> None:
        """Take the events of a step that ended at `now`; too many that nobody reads end it."""
        if self.is_done:
            return
        self.begin(now)
        for event in events:
            self._take(event, now)
        if not self._open:
            self._end(cancel=False)
        elif self._n_buffered > self._settings.reader_buffer:
            self._buffer.clear()
            self.fail(ApiError(408, "the answer was not read fast enough, so it was ended", code="slow_reader"))
        self._wake.set()

    def _take(self, event: Event, now: float) -> None:
        if event.progress is not None:
            if self.request.wants_progress:
                self._keep(event)
            return
        self.n_cached = max(self.n_cached, event.n_cached)
        if event.finish_reason == "error" and not self.n_written:
            self.fail(_of_engine(event))
            return
        if event.token_id is not None:
            self.n_written += 1
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
                self._restart_timer()
        if event.finish_reason is not None:
            self._open.discard(event.sample)
            self.finish_reason = event.finish_reason
        self._keep(event)

    def _keep(self, event: Event) -> None:
        self._buffer.append(event)
        self._n_buffered += _EVENT_BYTES + len(event.text)
        if event.routing is not None:
            self._n_buffered += sum(t.nbytes for t in event.routing)

    def _end(self, *, cancel: bool = True) -> None:
        self._timer.cancel()
        self._wake.set()
        if cancel:
            self._on_cancel(self)

    def _restart_timer(self) -> None:
        self._timer.cancel()
        self._timer = self._next_deadline()

    def _next_deadline(self) -> asyncio.TimerHandle:
        """The timer of what it waits for now: its turn, its first token, its end."""
        s, now = self._settings, time.monotonic()
        if self.started_at is None:
            what, code, at = "its turn", "queue_timeout", self.submitted_at + s.queue_timeout
        elif self.first_token_at is None:
            what, code, at = "its first token", "first_token_timeout", self.started_at + s.first_token_timeout
        else:
            what, code, at = "its end", "total_timeout", self.submitted_at + s.total_timeout
        at = min(at, self.submitted_at + s.total_timeout)
        message = f"the request waited {at - self.submitted_at:.0f} s for {what}, which is this server's limit"
        return self.loop.call_later(max(0.0, at - now), lambda: self.fail(ApiError(504, message, code=code)))
