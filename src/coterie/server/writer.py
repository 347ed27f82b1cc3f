"""How an answer leaves: whole, or as chunks of a stream. What a choice looks like is said by the routes (`Writer`).

A stream is: an opening chunk for each choice, deltas, exactly one ending for each choice (its delta is empty), the
usage where it is asked for, [DONE]. A failure in the middle is a chunk whose choices end with "error" and that has an
`error` beside them: OpenAI's client raises on the one, Mistral's sees the other.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.engine.sequence import Event
from coterie.errors import CoterieError
from coterie.server.answer import Answer, Part, Sample
from coterie.server.experts_request import echo
from coterie.server.failures import ApiError, translated
from coterie.server.prompts import Asked
from coterie.server.routing_answer import Shelf, final_routing, streamed_routing
from coterie.server.schema_sampling import Sampled
from coterie.server.sse import DONE, frame
from coterie.server.ticket import Ticket
from coterie.server.tokens import Token, vocabulary
from coterie.tokenizer import Tokenizer

__all__ = ["Context", "Writer", "read_all"]


@dataclass(frozen=True, slots=True)
class Context:
    """Who asked, where routing is kept, and the fields of the line in the log."""

    dialect: str
    owner: str
    shelf: Shelf
    log: dict[str, Any] = field(default_factory=dict)


class Writer(ABC):
    """One answer. `asked` has one entry for each ticket."""

    kind = ""
    chunk_kind = ""

    def __init__(
        self, answer: Answer, body: Sampled, asked: Sequence[Asked], context: Context, tokenizer: Tokenizer | None
    ):
        self.answer, self.body, self.asked, self.context = answer, body, asked, context
        self.words = None if tokenizer is None else vocabulary(tokenizer)
        options = body.stream_options
        self._has_usage_chunk = bool(options and options.include_usage)
        self._counts_on = bool(options and options.continuous_usage_stats)
        self._opened: set[int] = set()
        self._shown: dict[int, list[Token]] = {}  # of choices whose routing is given at the end, or kept
        self._n_open = len(answer.samples)
        self._has_begun = False

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The first choice of a stream, or None."""

    @abstractmethod
    def delta(self, part: Part) -> dict[str, Any]:
        """What came since."""

    @abstractmethod
    def ending(self, part: Part) -> dict[str, Any]:
        """The last choice of a stream, without text."""

    @abstractmethod
    def choice(self, part: Part) -> dict[str, Any]:
        """All of a choice at once."""

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises `ApiError` where a part of it failed."""
        try:
            async for number, events in read_all(self.answer.tickets):
                self.answer.take(number, events)
        finally:
            self._log()
        parts = [part for sample in self.answer.samples if (part := sample.part()) is not None]
        for sample in self.answer.samples:
            if sample.failure is not None:
                raise _error_of(sample.failure)
        choices = []
        for part in self.chosen(parts):
            choices.append({**self.choice(part), **self._extras(part, is_last=True)})
            if self.body.return_routing:
                choices[-1] |= final_routing(part.tokens)
                self._shown[part.index] = part.tokens
        self._keep_routing()
        more = {"timings": self.answer.timings()} if self.body.timings else {}
        return {
            **self.answer.envelope(self.kind),
            "choices": choices,
            "usage": self.answer.usage(),
            **self._once(),
            **more,
        }

    def chosen(self, parts: list[Part]) -> list[Part]:
        """The choices to show."""
        return parts

    async def stream(self) -> AsyncGenerator[str, None]:
        """Frames. Raises what happens before the first one as it is."""
        interval = self.body.stream_interval or 1
        try:
            async for number, events in read_all(self.answer.tickets):
                if frames := self._of_batch(number, events, interval):
                    yield frames
        finally:
            self._log()
        if self._has_usage_chunk:
            yield frame({**self._chunk([]), "usage": self.answer.usage()})
        self._keep_routing()
        yield DONE

    def _of_batch(self, number: int, events: Sequence[Event], interval: int) -> str:
        """All frames of a step in one text, since sending costs more than making them."""
        frames = ""
        for event in events:
            if event.progress is not None and self.body.return_progress:
                frames += self._progress(number, event)
        for sample in self.answer.take(number, events):
            is_due = sample.index not in self._opened or sample.n_unshown >= interval
            if is_due or sample.finish_reason is not None:
                frames += self._frames(sample)
        return frames

    def failure(self, error: Exception) -> str:
        """The last frames of a stream that cannot go on."""
        choices = []
        for sample in self.answer.samples:
            if sample.finish_reason is None:
                choices.append(self.ending(Part(sample.index, "", [], [], "error")))
        return frame({**self._chunk(choices), "error": _error_of(error).body()["error"]}) + DONE

    def _frames(self, sample: Sample) -> str:
        part = sample.part()
        if part is None:
            return ""
        frames = self._open(sample.index)
        if part.text or part.calls or part.tokens or (self.body.return_token_ids and part.ids):
            choice = self.delta(part)
            if self.body.return_routing == "stream" and part.tokens:
                choice["routing"] = streamed_routing(part.tokens)
            if self.body.return_routing:
                self._shown.setdefault(sample.index, []).extend(part.tokens)
            frames += frame(self._chunk([{**choice, **self._extras(part)}]))
        if part.finish_reason is not None:
            frames += self._end(part)
        return frames

    def _open(self, index: int) -> str:
        if index in self._opened:
            return ""
        self._opened.add(index)
        opening = self.opening(index)
        return "" if opening is None else frame(self._chunk([opening]))

    def _end(self, part: Part) -> str:
        self._n_open -= 1
        choice = self.ending(part)
        if self.body.return_routing == "final":
            choice |= final_routing(self._shown.get(part.index, []))
        chunk = self._chunk([choice])
        if self._n_open == 0:
            if self.context.dialect == "mistral" and not self._has_usage_chunk:
                chunk["usage"] = self.answer.usage()
            if self.body.timings:
                chunk["timings"] = self.answer.timings()
        if part.failure is not None:
            chunk["error"] = _error_of(part.failure).body()["error"]
        return frame(chunk)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self.answer.envelope(self.chunk_kind), "choices": choices}
        if self._counts_on:
            chunk["usage"] = self.answer.usage()
        elif self._has_usage_chunk:
            chunk["usage"] = None
        if not self._has_begun:
            self._has_begun = True
            chunk |= self._once()
        return chunk

    def _once(self) -> dict[str, Any]:
        """What is said once in an answer: in a stream on the first chunk."""
        said = {**echo(self.body.experts), **self.asked[0].told}
        if self.body.return_token_ids:
            said["prompt_token_ids"] = list(self.asked[0].request.prompt_ids)
        return said

    def _extras(self, part: Part, *, is_last: bool = False) -> dict[str, Any]:
        return {"token_ids": part.ids} if self.body.return_token_ids else {}

    def _progress(self, number: int, event: Event) -> str:
        done, total = event.progress or (0, 0)
        index = number * self.answer.n_each
        opening = self._open(index)
        progress = {
            "total": total,
            "cache": event.n_cached,
            "processed": done,
            "time_ms": self.answer.milliseconds(),
        }
        empty = self.delta(Part(index, "", [], []))
        return opening + frame({**self._chunk([empty]), "prompt_progress": progress})

    def finish_word(self, part: Part) -> str | None:
        """In the words of the dialect."""
        is_full = part.finish_reason == "length" and self.asked[-1].is_to_the_brim  # only chats are, which are single
        return "model_length" if is_full and self.context.dialect == "mistral" else part.finish_reason

    def _log(self) -> None:
        usage = self.answer.usage()
        self.context.log["prompt_tokens"] = usage["prompt_tokens"]
        self.context.log["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
        self.context.log["completion_tokens"] = usage["completion_tokens"]

    def _keep_routing(self) -> None:
        if self.body.return_routing:
            choices = [self._shown[index] for index in sorted(self._shown)]
            self.context.shelf.put(self.answer.id, self.context.owner, self.answer.model, self.answer.created, choices)


async def read_all(tickets: Sequence[Ticket]) -> AsyncGenerator[tuple[int, list[Event]], None]:
    """The batches of several tickets as they come, each with its ticket's number."""
    if len(tickets) == 1:
        async for events in tickets[0].batches():
            yield 0, events
        return
    queue: asyncio.Queue[tuple[int, list[Event] | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_pour(number, ticket, queue)) for number, ticket in enumerate(tickets)]
    try:
        n_open = len(tasks)
        while n_open:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                n_open -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()


async def _pour(
    number: int, ticket: Ticket, queue: "asyncio.Queue[tuple[int, list[Event] | Exception | None]]"
) -> None:
    try:
        async for events in ticket.batches():
            queue.put_nowait((number, events))
        queue.put_nowait((number, None))
    except Exception as e:
        queue.put_nowait((number, e))


def _error_of(error: Exception) -> ApiError:
    """Never the words of an exception that nobody expected."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, CoterieError):
        return translated(error)
    return ApiError(500, "the server failed in the middle of this answer", code="internal_error")
