"""HTTP/1.1 over a plain socket: whatever bytes a test wants to send, and exactly what came back.

No client library would send a header of 64 MB, half a request or `NaN`, and none would stop reading in the middle. Each
exchange has a connection of its own; every wait has an end.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Connection", "Reply", "Stream", "ask", "events_of", "request_bytes"]

_WAIT = 30.0


@dataclass(frozen=True)
class Reply:
    """What a request got: the status, the headers in lower case, the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> Any:
        return json.loads(self.body)


def request_bytes(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, host: str = "127.0.0.1"
) -> bytes:
    """A request as it goes over the wire. `body`: bytes and text as they are, anything else as JSON."""
    data = b"" if body is None else body if isinstance(body, bytes) else _text(body).encode("utf-8", "surrogatepass")
    lines = {"host": host, "connection": "close"}
    if body is not None:
        lines |= {"content-type": "application/json", "content-length": str(len(data))}
    lines |= {name.lower(): value for name, value in (headers or {}).items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogatepass") + data


def ask(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    wait: float = _WAIT,
) -> Reply:
    """One request and its whole answer."""
    with Connection(url, wait) as connection:
        host = urlsplit(url).netloc
        connection.send(request_bytes(method, path, body, headers, host=host))
        return connection.reply(has_body=method != "HEAD")


class Connection:
    """One socket to the server at `url`. Leaving the block closes it, in the middle of anything."""

    def __init__(self, url: str, wait: float = _WAIT, *, receive_buffer: int | None = None):
        parts = urlsplit(url)
        self._begun = time.perf_counter()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(wait)
        self.socket.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        self._bytes = b""

    def send(self, data: bytes) -> None:
        """As much as the server takes: one that answers early and closes is not a failure."""
        self._begun = time.perf_counter()
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def head(self) -> tuple[int, dict[str, str]]:
        """The status line and the headers. ConnectionError when the server hangs up before them."""
        while b"\r\n\r\n" not in self._bytes:
            self._receive()
        head, self._bytes = self._bytes.split(b"\r\n\r\n", 1)
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(status.split(" ")[1]), {name.strip().lower(): value.strip() for name, value in pairs}

    def reply(self, *, has_body: bool = True) -> Reply:
        status, headers = self.head()
        while status == 100:
            status, headers = self.head()
        body = b"".join(self.pieces(headers)) if has_body else b""
        return Reply(status, headers, body, time.perf_counter() - self._begun)

    def pieces(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        """The body as it arrives: chunked, of a given length, or until the end of the connection."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif "content-length" in headers:
            yield self._take(int(headers["content-length"]))
        else:
            yield from self._rest()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the server hung up")
        self._bytes += data

    def _take(self, n: int) -> bytes:
        while len(self._bytes) < n:
            self._receive()
        data, self._bytes = self._bytes[:n], self._bytes[n:]
        return data

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._bytes:
                self._receive()
            size, self._bytes = self._bytes.split(b"\r\n", 1)
            data = self._take(int(size, 16) + 2)[:-2]
            if not data:
                return
            yield data

    def _rest(self) -> Iterator[bytes]:
        yield self._bytes
        while data := self.socket.recv(65536):
            yield data


class Stream(Connection):
    """A request with `"stream": true`, sent and its headers read; iterate over the `data:` of its frames."""

    def __init__(
        self,
        url: str,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        wait: float = _WAIT,
        receive_buffer: int | None = None,
    ):
        super().__init__(url, wait, receive_buffer=receive_buffer)
        self.send(request_bytes("POST", path, {**body, "stream": True}, headers, host=urlsplit(url).netloc))
        self.status, self.headers = self.head()

    def __iter__(self) -> Iterator[str]:
        rest = b""
        for piece in self.pieces(self.headers):
            *frames, rest = (rest + piece).split(b"\n\n")
            yield from events_of(frames)

    def rest(self) -> Reply:
        """The body of a request that was refused."""
        return Reply(self.status, self.headers, b"".join(self.pieces(self.headers)), 0.0)


def events_of(frames: list[bytes]) -> Iterator[str]:
    """The data of each frame; comments (pings) are left out, anything else is not a stream of ours."""
    for frame in frames:
        if frame.startswith(b":"):
            continue
        assert frame.startswith(b"data: "), frame
        yield frame.removeprefix(b"data: ").decode()


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)
