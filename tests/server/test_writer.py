"""Frames of an answer from a fake of the engine: failures in the middle, half characters, several tickets at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coterie import load
from coterie.engine.request import Request, SamplingParams
from coterie.engine.sampling import TokenLogprob
from coterie.engine.sequence import Event, Sequence
from coterie.errors import CheckpointError
from coterie.server.answer import Answer
from coterie.server.chat import ChatWriter
from coterie.server.completions import TextWriter
from coterie.server.failures import ApiError
from coterie.server.prompts import Asked
from coterie.server.routing_answer import Shelf
from coterie.server.schema import read
from coterie.server.schema_chat import ChatBody
from coterie.server.schema_text import CompletionBody
from coterie.server.writer import Context, read_all

HELLO = [{"role": "user", "content": "Il était une fois"}]


class FakeTicket:
    """Gives these events, then raises."""

    n_prompt, n_cached, submitted_at = 3, 0, 0.0
    started_at = first_token_at = last_token_at = None

    def __init__(self, events: list[Event], error: Exception | None = None):
        self.request = Request((1, 2, 3), SamplingParams(max_tokens=8))
        self._events, self._error = events, error

    async def batches(self) -> AsyncIterator[list[Event]]:
        for event in self._events:
            yield [event]
        if self._error is not None:
            raise self._error


def writer(ticket: FakeTicket, **body: Any) -> ChatWriter:
    answer = Answer("chatcmpl", "demo", "fp_0")
    answer.add(ticket, None)  # type: ignore[arg-type]
    asked = [Asked(ticket.request)]
    return ChatWriter(answer, read(ChatBody, {"messages": HELLO, **body}), asked, Context("openai", "", Shelf()), None)


def test_offsets_in_a_stream_are_those_of_tokens_that_wait() -> None:
    """Of " E", which may become " END", the space is shown while the token still waits."""
    tokenizer = load().tokenizer
    ids = tokenizer.encode("the END")
    assert [tokenizer.piece(i) for i in ids] == ["▁the", "▁E", "N", "D"]
    request = Request((1,), SamplingParams(max_tokens=8, stop=("END",), logprobs=0))
    sequence = Sequence.of(0, request, 0, 0, (), tokenizer)
    ticket: Any = FakeTicket([sequence.write(i, TokenLogprob(i, -1.0, ())) for i in ids])
    answer = Answer("cmpl", "demo", "fp_0")
    answer.add(ticket, tokenizer)
    body = read(CompletionBody, {"prompt": "a", "logprobs": 0})
    text = TextWriter(answer, body, [Asked(request)], Context("openai", "", Shelf()), tokenizer)

    async def frames() -> str:
        return "".join([f async for f in text.stream()])

    found = [c for f in asyncio.run(frames()).strip().split("\n\n")[:-1] for c in json.loads(f[6:])["choices"]]
    assert "".join(c["text"] for c in found) == "the "
    told = [c["logprobs"] for c in found if c["logprobs"]]
    assert [t for part in told for t in part["tokens"]] == ["the", " "]
    assert [o for part in told for o in part["text_offset"]] == [0, 3]


def test_a_sample_that_fails_ends_with_its_sentence() -> None:
    cause = CheckpointError("the logits are not finite")
    failed = Event(0, 0, None, "", "error", error=str(cause), cause=cause)

    async def frames() -> list[str]:
        return [f async for f in writer(FakeTicket([Event(0, 0, 5, "a"), failed])).stream()]

    *_, last, done = "".join(asyncio.run(frames())).strip().split("\n\n")
    chunk = json.loads(last[6:])
    assert done == "data: [DONE]" and chunk["choices"][0]["finish_reason"] == "error"
    assert chunk["error"]["message"] == str(cause) and isinstance(chunk["error"]["code"], str | None)


def test_a_stream_that_cannot_go_on_ends_every_choice_and_tells_no_secrets() -> None:
    w = writer(FakeTicket([]))
    chunk = json.loads(w.failure(KeyError("/home/me/secret")).split("\n\n")[0][6:])
    assert chunk["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "error"}]
    assert "secret" not in json.dumps(chunk) and chunk["error"]["code"] == "internal_error"


def test_half_a_character_waits() -> None:
    """The engine gives no text for it; no chunk is made of it."""
    events = [Event(0, 0, 5, ""), Event(0, 0, 6, "é"), Event(0, 0, 7, "", "length")]

    async def frames() -> list[str]:
        return [f async for f in writer(FakeTicket(events)).stream()]

    found = [json.loads(f[6:]) for f in "".join(asyncio.run(frames())).strip().split("\n\n")[:-1]]
    assert [c["choices"][0]["delta"].get("content") for c in found] == ["", "é", None]


def test_what_fails_whole_has_its_own_status() -> None:
    for cause, status in ((ApiError(504, "too late"), 504), (None, 500)):
        failed = Event(0, 0, None, "", "error", error="too late", cause=cause)
        with pytest.raises(ApiError, match="too late") as caught:
            asyncio.run(writer(FakeTicket([Event(0, 0, 5, "a"), failed])).whole())
        assert caught.value.status == status


def test_what_it_cost_is_in_the_log() -> None:
    w = writer(FakeTicket([Event(0, 0, 5, "a"), Event(0, 0, 6, "b", "length")]))
    asyncio.run(w.whole())
    assert w.context.log == {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 2}


def test_several_tickets_are_read_side_by_side() -> None:
    async def read_them(tickets: list[FakeTicket]) -> list[tuple[int, str]]:
        return [(number, events[0].text) async for number, events in read_all(tickets)]  # type: ignore[arg-type]

    one, two = FakeTicket([Event(0, 0, 5, "a"), Event(0, 0, 5, "b")]), FakeTicket([Event(0, 0, 5, "c")])
    got = asyncio.run(read_them([one, two]))
    assert sorted(got) == [(0, "a"), (0, "b"), (1, "c")]
    with pytest.raises(ApiError, match="no"):
        asyncio.run(read_them([one, FakeTicket([], ApiError(400, "no"))]))
