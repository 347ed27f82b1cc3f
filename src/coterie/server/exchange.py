"""One request and what is answered to it: headers that every answer has, the status for the log, failures as JSON.

`until_gone` runs a handler for as long as somebody waits for it. Nothing is written to a client that has left.
"""

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coterie.errors import CoterieError
from coterie.server.body import has_body
from coterie.server.failures import ApiError, internal, translated

__all__ = ["Exchange", "until_gone"]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_log = logging.getLogger("coterie.server")


class Exchange:
    """One request and what has been answered: adds headers, remembers the status, writes failures."""

    def __init__(self, scope: Scope, send: Send):
        self.scope, self._send = scope, send
        self.headers = _headers(scope)
        self.status = 0
        self.is_gone = False  # the client
        self.is_read = not has_body(self.headers)  # else the connection cannot be used again
        self.added: dict[str, str] = {}
        self._began = time.monotonic()
        given = self.headers.get("x-request-id", "").encode("latin-1")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else "req_" + secrets.token_hex(12)
        state = scope.setdefault("state", {})
        state["request_id"], state["log"] = self.request_id, {}
        agent = self.headers.get("user-agent", "")
        state["dialect"] = "mistral" if agent.startswith("mistral-client-python/") else "openai"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def route(self) -> str:
        """The route's own path, `/v1/models/{id}`: of paths there is no end, of routes there is."""
        if "endpoint" not in self.scope:
            return "unknown"
        path: str = self.scope["path"]
        for name, value in self.scope.get("path_params", {}).items():
            before, _, after = path.rpartition(str(value))
            path = f"{before}{{{name}}}{after}"
        return path

    async def send(self, message: Message) -> None:
        if self.is_gone:
            raise ConnectionResetError
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message["headers"]}
            ours = {**_HEADERS, **self.added, "x-request-id": self.request_id}
            if not self.is_read:
                ours["connection"] = "close"
            extra = [(n.encode(), v.encode("latin-1")) for n, v in ours.items() if n.encode() not in present]
            message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        if isinstance(error, HTTPException):
            error = _of_router(error, self.scope)
        elif isinstance(error, CoterieError):
            error = translated(error)
        elif not isinstance(error, ApiError):
            _log.error("request %s failed", self.request_id, exc_info=error)
            error = internal(self.request_id)
        if self.status:  # too late to say so: the answer has begun, and ends torn
            raise ConnectionAbortedError from error
        dialect = self.scope["state"]["dialect"]
        response = JSONResponse(error.body(dialect), error.status_in(dialect), error.headers)
        await response(self.scope, _nothing, self.send)

    def log_fields(self) -> dict[str, Any]:
        scope, state = self.scope, self.scope["state"]
        client = scope.get("client") or ("", 0)
        key = getattr(state.get("key"), "name", "")
        return {
            "id": self.request_id,
            "client": client[0],
            "key": key,
            "method": scope["method"],
            "path": scope["path"],
            "status": self.status,
            "ms": round(self.seconds * 1000, 1),
            **state["log"],
        }


async def until_gone(app: ASGIApp, exchange: Exchange, receive: Receive, body: bytes) -> None:
    """Run the handler until it is done, or until the client is gone: then it is cancelled. Raises what it raises."""
    gone = asyncio.Event()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange.is_gone = True
        gone.set()

    handler = asyncio.ensure_future(app(exchange.scope, receive_again, exchange.send))
    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait((handler, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        if not handler.done():
            handler.cancel()
            await asyncio.wait((handler,))
    if handler.cancelled():
        raise ConnectionResetError
    try:
        handler.result()
    finally:
        del handler  # it holds the exception, which holds this frame


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _headers(scope: Scope) -> dict[str, str]:
    """By name; one that comes twice counts as what it would be joined, so that no two readers see different ones."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _of_router(error: HTTPException, scope: Scope) -> ApiError:
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        message = f"this route does not take {scope['method'][:20]}, expected {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
    if error.status_code == 404:
        return ApiError(404, "there is no such route", code="not_found")
    return ApiError(400, "the request could not be read", code="bad_request")
