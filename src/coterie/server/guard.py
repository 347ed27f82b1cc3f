"""What stands before every route, as pure ASGI: nothing is reached that is not allowed by name.

In order: request id, host, origin, key, draining, body. A client that leaves cancels its handler, whether it streams
or not. Whatever is raised below becomes the JSON of `failures`; an unexpected exception is a request id and no more.
What needs no key is a short list compared with the raw path; percent signs and dots in a path never match it.
"""

import asyncio
import re
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coterie.server.access_log import write_line
from coterie.server.body import discard_body, read_body
from coterie.server.exchange import Exchange, until_gone
from coterie.server.failures import ApiError, unavailable
from coterie.server.settings import is_loopback
from coterie.server.state import State

__all__ = ["Guard", "is_public"]

_HEALTH = {b"/live", b"/ready", b"/health", b"/v1/health"}
_PAGE = re.compile(rb"/page(/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)+")
_ADMIN = {"/metrics", "/v1/routing/stream"}  # what tells of everybody
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


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
        exchange = Exchange(scope, send)
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

    async def _answer(self, exchange: Exchange, receive: Receive) -> None:
        scope = exchange.scope
        try:
            if (response := self._admit(exchange)) is not None:
                await response(scope, receive, exchange.send)
                return
            body = b""
            if scope["method"] not in _SAFE_METHODS:
                body = await read_body(exchange.headers, receive, self.state.settings)
                exchange.is_read = True
            await until_gone(self.app, exchange, receive, body)
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

    def _admit(self, exchange: Exchange) -> Response | None:
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
            raise ApiError(
                403, "this Host is not served here: the setting allowed_hosts lists others", code="host_not_allowed"
            )

    def _check_origin(self, exchange: Exchange) -> str | None:
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
            raise ApiError(
                403,
                "this Origin may not ask here: the setting cors_origins lists those that may",
                code="origin_not_allowed",
            )
        return None
