"""HTTP/1.1 to one server: a socket and h11, a connection for each request, and the time at which each piece came.

The time is taken when the socket had it, before anything is parsed. Proxies of the environment are not used: what lies
between would be measured too.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from coterie.errors import RequestError

__all__ = ["Client", "Failure", "Target"]

_LARGEST_ANSWER = 64 << 20
_SHOWN = 300  # characters of what a server says when it refuses


class Failure(Exception):
    """Why a request has no answer, in words for people."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is; `path` is what its routes hang from, without /v1."""

    is_tls: bool
    host: str
    port: int
    path: str

    @staticmethod
    def of(url: str) -> "Target":
        """Raises `RequestError` for what is no plain http(s) URL."""
        shown = url if len(url) <= 100 else url[:97] + "..."
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        is_odd = parts.username is not None or parts.query or parts.fragment or not url.strip().isascii()
        if parts.scheme not in ("http", "https") or not parts.hostname or is_odd or not url.strip().isprintable():
            raise RequestError(f"--base-url is {shown!r}, expected for example http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return Target(is_tls, parts.hostname, port or (443 if is_tls else 80), path)

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.is_tls else 80) else f"{name}:{self.port}"


class Client:
    """`key` is sent as a bearer token; `timeout` is for a whole request, in seconds."""

    def __init__(self, target: Target, key: str | None = None, timeout: float = 600.0):
        if key is not None and not (key.isascii() and key.isprintable()):
            raise RequestError("the key holds characters that no key has (a line break?)")
        self.target, self._key, self._timeout = target, key, timeout
        self._tls = ssl.create_default_context() if target.is_tls else None

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[tuple[float, bytes], None]:
        """The `data:` of each server-sent event of an answer, with the time at which it came. Raises `Failure`."""
        lines = bytearray()
        async with aclosing(self._pieces("POST", path, body)) as pieces:
            async for at, piece in pieces:
                lines += piece
                while (end := lines.find(b"\n")) >= 0:
                    line = bytes(lines[:end]).rstrip(b"\r")
                    del lines[: end + 1]
                    if line.startswith(b"data:"):
                        yield at, line[5:].strip()

    async def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A whole answer. Raises `Failure`, also where it is not JSON."""
        data = bytearray()
        async with aclosing(self._pieces(method, path, body)) as pieces:
            async for _, piece in pieces:
                data += piece
        try:
            return json.loads(data)
        except ValueError:
            raise Failure(f"{path} answers with something that is not JSON") from None

    async def _pieces(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[tuple[float, bytes], None]:
        """The pieces of the body of a 200. Raises `Failure`."""
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(self.target.host, self.target.port, ssl=self._tls)
                connection = h11.Connection(h11.CLIENT)
                parts = (self._request(method, path, len(data)), h11.Data(data=data), h11.EndOfMessage())
                writer.write(b"".join(connection.send(part) or b"" for part in parts))
                async with aclosing(_answer(connection, reader)) as answer:
                    async for at, piece in answer:
                        yield at, piece
        except TimeoutError:
            raise Failure(f"no end within {self._timeout:g} s") from None
        except OSError as e:
            raise Failure(f"{self.target.host_header}: {(e.strerror or str(e) or type(e).__name__).lower()}") from None
        except h11.RemoteProtocolError as e:
            raise Failure(f"the answer broke off or is not HTTP: {e}") from None
        finally:
            if writer is not None:
                writer.close()

    def _request(self, method: str, path: str, n_bytes: int) -> h11.Request:
        headers = [
            ("host", self.target.host_header),
            ("accept", "text/event-stream, application/json"),
            ("connection", "close"),
            ("content-length", str(n_bytes)),
            *([("content-type", "application/json")] if n_bytes else []),
            *([("authorization", f"Bearer {self._key}")] if self._key else []),
        ]
        return h11.Request(method=method, target=self.target.path + path, headers=headers)


async def _answer(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> AsyncGenerator[tuple[float, bytes], None]:
    at, n_bytes, status, refusal = 0.0, 0, 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(1 << 16)
            at = time.perf_counter()
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            n_bytes += len(event.data)
            if n_bytes > _LARGEST_ANSWER:
                raise Failure(f"the answer is longer than {_LARGEST_ANSWER >> 20} MB")
            if status == 200:
                yield at, bytes(event.data)
            else:
                refusal += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise Failure("the connection was closed before an answer came")
    if status != 200:
        raise Failure(f"status {status}: {_message(bytes(refusal))}")


def _message(body: bytes) -> str:
    """What an error body says, in whichever of the usual shapes."""
    try:
        value = json.loads(body)
    except ValueError:
        value = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
