"""Frames on raw bytes: comments while nothing is there, status of an early failure, an end after a late one."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from coterie.server.failures import ApiError
from coterie.server.sse import DONE, EventStream, frame


async def send_all(frames: AsyncGenerator[str, None], ping: float = 60) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    await EventStream(frames, lambda e: frame({"error": str(e)}) + DONE, ping, {"x-a": "b"})({}, receive, send)
    return sent


def body(sent: list[dict[str, Any]]) -> bytes:
    return b"".join(m.get("body", b"") for m in sent)


def test_a_frame_is_one_line_whatever_is_in_it() -> None:
    text = "a\nb\r\nc\u2028d é 🙂"
    made = frame({"text": text})
    assert made.startswith("data: {") and made.endswith("}\n\n") and made.count("\n") == 2 and "\r" not in made
    assert json.loads(made[6:]) == {"text": text}


def test_headers_and_order() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        yield frame({"a": 1})
        yield DONE

    sent = asyncio.run(send_all(frames()))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"], headers[b"x-a"]) == (b"no-store", b"no", b"b")
    assert b"content-length" not in headers
    assert body(sent) == b'data: {"a":1}\n\ndata: [DONE]\n\n' and sent[-1]["more_body"] is False


def test_comments_while_nothing_comes() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        await asyncio.sleep(0.25)
        yield frame({"a": 1})
        yield DONE

    got = body(asyncio.run(send_all(frames(), ping=0.1)))
    assert got == b': ping\n\n: ping\n\ndata: {"a":1}\n\ndata: [DONE]\n\n'


def test_a_failure_before_the_first_frame_is_an_ordinary_answer() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        raise ApiError(429, "full")
        yield ""

    with pytest.raises(ApiError, match="full"):
        asyncio.run(send_all(frames()))


def test_a_failure_after_the_first_comment_or_frame_ends_the_stream() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        await asyncio.sleep(0.15)
        raise ApiError(504, "too late")
        yield ""

    got = body(asyncio.run(send_all(frames(), ping=0.1)))
    assert got == b': ping\n\ndata: {"error":"too late"}\n\ndata: [DONE]\n\n'


def test_who_leaves_ends_the_frames() -> None:
    ended = []

    async def frames() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield frame({})
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    async def leave() -> None:
        task = asyncio.ensure_future(send_all(frames()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert ended == [True]
