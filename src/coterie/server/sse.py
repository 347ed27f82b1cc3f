"""Server-sent events: frames, comments that keep a silent connection open, and an end that is always said.

The first frame decides the status: what fails before it is an ordinary answer with its own status. Where nothing has
come for `ping_interval` seconds the answer begins with a comment, which clients skip (an empty `data:` breaks them).
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coterie.errors import CoterieError
from coterie.server.failures import ApiError

__all__ = ["DONE", "EventStream", "frame"]

DONE = "data: [DONE]\n\n"
_PING = b": ping\n\n"
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_log = logging.getLogger("coterie.server")


def frame(value: Mapping[str, Any]) -> str:
    """One event. JSON escapes line breaks, so that it is always one line of data."""
    return f"data: {_encoder.encode(value)}\n\n"


class EventStream(Response):
    """An answer of frames (`frame`, `DONE`) as they come; `failure` makes the last ones of one that cannot go on.

    Slow readers and those who leave are the business of the guard.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self,
        frames: AsyncGenerator[str, None],
        failure: Callable[[Exception], str],
        ping_interval: float,
        headers: Mapping[str, str] | None = None,
    ):
        given = {"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        super().__init__(headers=given)
        del self.headers["content-length"]
        self._frames, self._failure, self._ping_interval = frames, failure, ping_interval
        self._has_begun = False
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pings = asyncio.ensure_future(self._ping(send))
        try:
            async with aclosing(self._frames) as frames:
                async for text in frames:
                    await self._send(send, text.encode())
        except Exception as e:
            if not self._has_begun or isinstance(e, ConnectionError):
                raise
            if not isinstance(e, ApiError | CoterieError):
                _log.exception("a stream failed")
            await self._send(send, self._failure(e).encode())
        finally:
            pings.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._last_sent = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        """A comment whenever nothing was sent for the interval."""
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        while True:
            wait = self._last_sent + self._ping_interval - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._send(send, _PING)
