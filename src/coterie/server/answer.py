"""An answer in the making: events of the engine into what each choice has to show, streamed or whole.

`Sample` is one choice; `Answer` is all of them with what they cost. How a choice is written in JSON is the routes'.
"""

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from coterie.engine.request import Request
from coterie.engine.sequence import Event
from coterie.errors import CoterieError
from coterie.server.failures import ApiError
from coterie.server.ticket import Ticket
from coterie.server.tokens import Token, TokenReader
from coterie.server.tool_reader import CallReader, Piece
from coterie.tokenizer import Tokenizer

__all__ = ["Answer", "Part", "Sample"]


@dataclass(slots=True)
class Part:
    """What a choice has to show since the last time. `finish_reason` is None until the last part."""

    index: int
    text: str
    tokens: list[Token]
    ids: list[int]
    finish_reason: str | None = None
    calls: list[Piece] = field(default_factory=list)  # of tools, or parts of them
    failure: Exception | None = None


class Sample:
    """One choice. `tokenizer` is None where nobody asked for single tokens, which makes it cheap."""

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer | None = None, calls: CallReader | None = None
    ):
        self.index = index
        self.n_tokens = 0
        self.finish_reason: str | None = None
        self._reader = None if tokenizer is None else TokenReader(tokenizer, request.context_ids)
        self._call_reader = calls
        self._calls: list[Piece] = []
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._ids: list[int] = []
        self.failure: Exception | None = None

    def take(self, event: Event) -> None:
        self._take_text(event)
        if event.token_id is not None:
            self.n_tokens += 1
            self._ids.append(event.token_id)
        if self._reader is not None:
            self._reader.take(event)
            self._tokens += self._reader.release() if event.finish_reason is None else self._reader.finish()
        if event.finish_reason is not None:
            has_called = self._call_reader is not None and self._call_reader.n_calls > 0
            self.finish_reason = "tool_calls" if has_called and event.finish_reason == "stop" else event.finish_reason
        if event.finish_reason == "error":
            self.failure = _failure_of(event)

    def _take_text(self, event: Event) -> None:
        if self._call_reader is None:
            if event.text:
                self._texts.append(event.text)
            return
        pieces = self._call_reader.push(event.text, () if event.token_id is None else (event.token_id,))
        if event.finish_reason is not None:
            pieces += self._call_reader.finish()
        self._texts += [piece.text for piece in pieces if piece.text]
        self._calls += [piece for piece in pieces if piece.index is not None]

    @property
    def n_unshown(self) -> int:
        """Tokens since the last part."""
        return len(self._ids)

    def part(self) -> Part | None:
        """What there is to show now, if anything; it is shown once."""
        if not (self._texts or self._calls or self._tokens or self.finish_reason):
            return None
        text = "".join(self._texts)
        part = Part(self.index, text, self._tokens, self._ids, self.finish_reason, self._calls, self.failure)
        self._texts, self._calls, self._tokens, self._ids = [], [], [], []
        return part


@dataclass(slots=True)
class Answer:
    """The samples of one or several tickets, numbered through, and the sums over them."""

    kind: str  # what its id begins with: "chatcmpl", "cmpl"
    model: str
    fingerprint: str
    n_each: int = 1  # samples of a ticket
    tickets: list[Ticket] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""
    began_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.kind}-{secrets.token_hex(16)}"

    def add(
        self, ticket: Ticket, tokenizer: Tokenizer | None, calls: Callable[[], CallReader | None] = lambda: None
    ) -> None:
        """The samples of one more ticket; `calls` makes each what finds calls of tools in its text."""
        first = len(self.samples)
        self.tickets.append(ticket)
        self.samples += [Sample(first + i, ticket.request, tokenizer, calls()) for i in range(self.n_each)]

    def take(self, number: int, events: Iterable[Event]) -> list[Sample]:
        """Events of the ticket of this number; the samples that have something new, in order."""
        touched: dict[int, Sample] = {}
        for event in events:
            if event.progress is None:
                index = number * self.n_each + event.sample
                touched[index] = self.samples[index]
                self.samples[index].take(event)
        return [touched[index] for index in sorted(touched)]

    def envelope(self, kind: str) -> dict[str, Any]:
        """What begins every object of this answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def usage(self) -> dict[str, Any]:
        n_prompt = sum(t.n_prompt for t in self.tickets)
        n_written = sum(s.n_tokens for s in self.samples)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_written,
            "total_tokens": n_prompt + n_written,
            "prompt_tokens_details": {"cached_tokens": sum(t.n_cached for t in self.tickets)},
        }

    def milliseconds(self) -> float:
        """Since it was asked for."""
        return round((time.monotonic() - self.began_at) * 1000, 3)

    def timings(self) -> dict[str, Any]:
        """llama-server's names; of the first ticket's prompt and of all that was written."""
        first, now = self.tickets[0], time.monotonic()
        started = first.started_at or now
        written = first.first_token_at or now
        prompt_ms = (written - (first.started_at or first.submitted_at)) * 1000
        n_prompt, n_written = first.n_prompt - first.n_cached, sum(s.n_tokens for s in self.samples)
        predicted_ms = ((first.last_token_at or now) - written) * 1000
        return {
            "queue_ms": round((started - first.submitted_at) * 1000, 3),
            "cache_n": first.n_cached,
            "prompt_n": n_prompt,
            "prompt_ms": round(prompt_ms, 3),
            "prompt_per_second": _rate(n_prompt, prompt_ms),
            "predicted_n": n_written,
            "predicted_ms": round(predicted_ms, 3),
            "predicted_per_second": _rate(n_written, predicted_ms),
        }


def _failure_of(event: Event) -> Exception:
    """What may be said of it: the engine's sentence is for the user, that of any other exception is not."""
    if isinstance(event.cause, ApiError | CoterieError):
        return event.cause
    return ApiError(500, event.error or "the model failed on this request", code="engine_error")


def _rate(n: int, ms: float) -> float:
    return round(n * 1000 / ms, 3) if ms > 0 else 0.0
