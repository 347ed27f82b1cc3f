"""What stands before every route, as pure ASGI: nothing is reached that is not allowed by name.

In order: request id, host, origin, key, draining, body. A client that leaves cancels its handler, whether it streams
or not. Whatever is raised below becomes the JSON of `failures`; an unexpected exception is a request id and no more.
What needs no key is a short list compared with the raw path; percent signs and dots in a path never match it.
"""

import asyncio
import logging
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coterie.errors import CoterieError
from coterie.server.access_log import write_line
from coterie.server.body import discard_body, has_body, read_body
from coterie.server.failures import ApiError, internal, translated, unavailable
from coterie.server.settings import is_loopback
from coterie.server.state import State

__all__ = ["Guard", "is_public"]

_HEALTH = {b"/live", b"/ready", b"/health", b"/v1/health"}
_PAGE = re.compile(rb"/page(/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)+")
_ADMIN = {"/metrics"}
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_log = logging.getLogger("coterie.server")


def is_public(raw_path: bytes) -> bool:
    """Whether a path needs no key: health, and the files of the chat page."""
    return raw_path in _HEALTH or raw_path == b"/" or _PAGE.fullmatch(raw_path) is not None


class Guard:
    """The ASGI application around the router."""

    def __init__(self, app: ASGIApp, state: State):
        self.app, self.state = app, state
        self._is_local = is_loopback(state.settings.host)
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *state.settings.allowed_hosts}
        if self._is_local:
            self._hosts.add(f"[{state.settings.host}]" if ":" in state.settings.host else state.settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, send)
        counts = scope["raw_path"] not in _HEALTH
        self.state.n_in_flight += counts
        try:
            await self._answer(exchange, receive)
        finally:
            self.state.n_in_flight -= counts
            if self.state.settings.access_log:
                write_line(exchange.log_fields())
            if self.state.metrics is not None:
                self.state.metrics.on_response(exchange.route, scope["method"], exchange.status, exchange.seconds)

    async def _answer(self, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        try:
            if (response := self._admit(exchange)) is not None:
                await response(scope, receive, exchange.send)
                return
            body = b""
            if scope["method"] not in _SAFE_METHODS:
                body = await read_body(exchange.headers, receive, self.state.settings)
                exchange.is_read = True
            await _until_gone(self.app, exchange, receive, body)
        except (ConnectionError, ClientDisconnect):
            exchange.status = 499
        except asyncio.CancelledError:
            exchange.status = 499
            raise
        except Exception as e:
            is_late = isinstance(e, ApiError) and e.status == 408
            if not exchange.is_read and not is_late:
                await discard_body(exchange.headers, receive)
            await exchange.fail(e)

    def _admit(self, exchange: "_Exchange") -> Response | None:
        """Raises `ApiError`; returns the answer to a preflight."""
        scope, headers = exchange.scope, exchange.headers
        limit = self.state.settings.max_header
        if len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"]) > limit:
            raise ApiError(431, f"the headers are larger than {limit} bytes", code="headers_too_large")  # came at once
        self._check_host(headers)
        origin = self._check_origin(exchange)
        if origin is not None:
            exchange.added |= {"access-control-allow-origin": origin, "vary": "Origin"}
            exchange.added["access-control-expose-headers"] = "x-request-id, retry-after, x-ignored-fields"
            exchange.added["cross-origin-resource-policy"] = "cross-origin"
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                allowed = {
                    "access-control-allow-methods": "GET, POST",
                    "access-control-allow-headers": "authorization, content-type, x-api-key, x-request-id",
                    "access-control-max-age": "600",
                }
                return Response(status_code=204, headers=allowed)
        if not is_public(scope["raw_path"]):
            key = self.state.keys.find(headers.get("authorization"), headers.get("x-api-key"))
            if scope["path"] in _ADMIN and key.scope != "admin":
                raise ApiError(403, f"{scope['path']} needs a key of the scope admin", code="admin_only")
            scope["state"]["key"] = key
            if self.state.is_draining:
                raise unavailable("the server is shutting down", 5, code="draining", retry=True)
        if self.state.is_draining:
            exchange.added["connection"] = "close"
        return None

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if len(host) > 255 or _HOST.fullmatch(host) is None:
            raise ApiError(400, "the Host header is missing or is not a host", code="invalid_host")
        name = re.sub(r":[0-9]+$", "", host).lower()
        if name not in self._hosts and (self._is_local or self.state.settings.allowed_hosts):
            raise ApiError(403, "this Host is not served here; --allowed-host adds one", code="host_not_allowed")

    def _check_origin(self, exchange: "_Exchange") -> str | None:
        """The origin of another site that is allowed; None for our own page or no browser at all."""
        origin = exchange.headers.get("origin")
        if origin is None:
            return None
        if origin in self.state.settings.cors_origins:
            return origin
        method = exchange.scope["method"]
        is_ours = (
            urlsplit(origin).scheme in ("http", "https")
            and origin.lower().partition("://")[2] == exchange.headers["host"].lower()
        )
        if not is_ours and (method not in _SAFE_METHODS or method == "OPTIONS"):
            raise ApiError(403, "this Origin may not ask here; --cors-origin allows one", code="origin_not_allowed")
        return None


class _Exchange:
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


async def _until_gone(app: ASGIApp, exchange: _Exchange, receive: Receive, body: bytes) -> None:
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
