"""uvicorn's h11 protocol with limits on those who send or read too slowly.

A request line and headers have `header_timeout` seconds, on a fresh connection and on a kept one. Who does not read has
`send_timeout` seconds in which the socket must drain. What is not HTTP is answered with JSON and closed.
"""

import asyncio
import json
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from coterie.server.failures import ApiError
from coterie.server.settings import Settings

__all__ = ["protocol_class"]


def protocol_class(settings: Settings) -> type[H11Protocol]:
    """The protocol with these limits; uvicorn makes one for each connection."""

    class Limited(LimitedProtocol):
        limits = settings

    return Limited


class LimitedProtocol(H11Protocol):
    limits: Settings
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.reader_buffer // 2)  # the kernel doubles it
        self._await_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self.timeout_keep_alive_task is None and self._header_timer is None:  # the beginning of a next request
                self._await_header()
        else:
            self._stop_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header()
        self._stop_send()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_send()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is being handled; its hint is 431 where the headers are too large."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(
                ApiError(431, f"the headers are larger than {self.limits.max_header} bytes", code="headers_too_large")
            )
        else:
            self._refuse(ApiError(400, "this is not an HTTP request", code="invalid_http"))

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_timeout, self._too_slow)

    def _too_slow(self) -> None:
        message = f"the headers did not arrive within {self.limits.header_timeout:.0f} s"
        self._refuse(ApiError(408, message, code="header_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; where an answer is under way, just close."""
        self._stop_header()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # connection_lost tells the handler
        elif self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            body = json.dumps(error.body()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            events = (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self.transport.close()
        else:
            self.transport.abort()

    def _stop_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_send(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
