"""A server that answers as it is told, so that every time and token is known."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from coterie.bench.client import Client, Target


@dataclass
class Fake:
    """`answers` maps a path to bytes, or to a list of (seconds to wait, bytes) that is sent piece by piece."""

    answers: dict[str, Any]
    url: str = ""
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)  # path, headers, body
    n_open: int = 0
    most_open: int = 0

    @property
    def client(self) -> Client:
        return Client(Target.of(self.url), timeout=5)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (h.partition(": ") for h in rest)}
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            path = line.split(" ")[1]
            self.requests.append((path, headers, json.loads(data) if data else None))
            answer = self.answers.get(path, reply(b"{}", 404))
            for wait, piece in [(0.0, answer)] if isinstance(answer, bytes) else answer:
                await asyncio.sleep(wait)
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.n_open -= 1
            writer.close()


def reply(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def streamed(*pieces: tuple[float, str], kind: str = "text/event-stream") -> list[tuple[float, bytes]]:
    """Chunks, each after a wait; the last one ends the answer."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunks = [(wait, b"%x\r\n%b\r\n" % (len(t.encode()), t.encode())) for wait, t in pieces]
    return [(0.0, head), *chunks, (0.0, b"0\r\n\r\n")]


def tokens(words: Sequence[str], wait: float = 0.0, n_prompt: int = 7) -> list[tuple[float, bytes]]:
    """A completion of these words, one a chunk, with usage."""

    def event(value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value)}\n\n"

    texts = [(wait, event({"choices": [{"index": 0, "text": w, "finish_reason": None}]})) for w in words]
    usage = {"prompt_tokens": n_prompt, "completion_tokens": len(words)}
    return streamed(*texts, (0.0, event({"choices": [], "usage": usage}) + "data: [DONE]\n\n"))


@pytest.fixture(scope="session")
def api() -> Callable[..., Any]:
    """`async with api({path: answer}) as fake`."""

    @contextlib.asynccontextmanager
    async def start(answers: dict[str, Any]) -> AsyncIterator[Fake]:
        fake = Fake(answers)
        async with await asyncio.start_server(fake.handle, "127.0.0.1", 0, backlog=1000) as server:
            fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield fake

    return start


@pytest.fixture(scope="session")
def answers() -> Any:
    """The builders of answers: `.reply`, `.streamed`, `.tokens`."""

    class Builders:
        reply = staticmethod(reply)
        streamed = staticmethod(streamed)
        tokens = staticmethod(tokens)

    return Builders
