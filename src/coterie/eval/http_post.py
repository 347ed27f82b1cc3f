"""One HTTP request with one deadline for all of it, and a way to end those under way.

A socket's own timeout starts again with each byte; here a timer shuts the socket down when the time is over. Proxies of
the environment are used, except for this very machine.
"""

import http.client
import ipaddress
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from coterie.errors import RequestError

__all__ = ["Response", "Target", "Transport", "TransportError"]

_LARGEST_BODY = 8 << 20


class TransportError(Exception):
    """Why no answer came, for people; and whether another try or another question may fare better."""

    def __init__(
        self,
        reason: str,
        *,
        is_worth_another_try: bool = True,
        is_hopeless: bool = False,
        retry_after: float | None = None,
    ):
        super().__init__(reason)
        self.reason, self.is_worth_another_try = reason, is_worth_another_try
        self.is_hopeless, self.retry_after = is_hopeless, retry_after


@dataclass(frozen=True, slots=True)
class Response:
    """What came, at most 8 MiB of it."""

    status: int
    body: bytes
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the path that its pages hang from."""

    is_tls: bool
    host: str
    port: int
    path: str = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "Target":
        """Raises `RequestError` for what is no http(s) URL, or has a user, a query or a fragment in it."""
        shown = url if len(url) <= 100 else url[:97] + "..."
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            raise RequestError(f"{shown!r} is not a URL, expected for example http://localhost:8000/v1") from None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise RequestError(
                "the judge's URL has a user, a password, a query or a fragment in it: give the plain URL, and the key "
                "in the environment variable COTERIE_JUDGE_KEY"
            )
        is_plain = url.isprintable() and url.isascii() and " " not in url.strip()
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise RequestError(f"{shown!r} is not a URL of a judge, expected for example http://localhost:8000/v1")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        is_tls = parts.scheme == "https"
        return cls(is_tls, parts.hostname, port or (443 if is_tls else 80), path)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == (443 if self.is_tls else 80)
        return f"http{'s' * self.is_tls}://{host}{'' if is_usual else f':{self.port}'}{self.path}"


class Transport:
    """`send` from any number of threads; each request has a connection of its own."""

    def __init__(self, target: Target, key: str | None):
        self._target = target
        self._key = _checked(key)
        self._open: set[http.client.HTTPConnection] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def without_key(self, text: str) -> str:
        """The text with the key blotted out, should a server repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def send(self, method: str, page: str, body: bytes | None, timeout: float) -> Response:
        """The server's answer, of whatever status. Raises `TransportError` where none came in time."""
        started, where = time.monotonic(), self._target.address
        try:
            with self._connection(timeout) as (connection, prefix):
                connection.request(method, prefix + self._target.path + page, body, self._headers())
                answer = connection.getresponse()
                data = answer.read(_LARGEST_BODY + 1)
                response = Response(answer.status, data, answer.getheader("Retry-After"))
        except (OSError, http.client.HTTPException, ValueError) as e:
            if isinstance(e, TimeoutError) or time.monotonic() - started >= timeout:
                raise TransportError(f"{where} does not answer within {timeout:g} s") from None
            raise TransportError(f"{where} cannot be asked: {_why(e)}") from None
        if time.monotonic() - started >= timeout:  # cut off in the midst of the body
            raise TransportError(f"{where} does not answer within {timeout:g} s")
        if len(data) > _LARGEST_BODY:
            raise TransportError(
                f"{where} answers with more than {_LARGEST_BODY >> 20} MiB", is_worth_another_try=False
            )
        return response

    def close(self) -> None:
        """End every request under way, also one that is just connecting; their senders get a `TransportError`."""
        with self._lock:
            self._is_closed = True
            for connection in self._open:
                _shut(connection)

    @contextmanager
    def _connection(self, timeout: float) -> Iterator[tuple[http.client.HTTPConnection, str]]:
        """An open connection that is shut when the time is over, and what stands before the path."""
        connection, prefix = self._connect_to(timeout)
        timer = threading.Timer(timeout, _shut, (connection,))
        timer.daemon = True
        timer.start()
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            with self._lock:
                if self._is_closed:
                    raise OSError("stopped")
            yield connection, prefix
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _connect_to(self, timeout: float) -> tuple[http.client.HTTPConnection, str]:
        t = self._target
        kind = http.client.HTTPSConnection if t.is_tls else http.client.HTTPConnection
        proxy = _proxy(t)
        if proxy is None:
            return kind(t.host, t.port, timeout=timeout), ""
        connection = kind(*proxy, timeout=timeout)
        if t.is_tls:
            connection.set_tunnel(t.host, t.port)
            return connection, ""
        return connection, f"http://{t.host}:{t.port}"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})


def _checked(key: str | None) -> str:
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()) or len(key) > 10_000:
        raise RequestError("COTERIE_JUDGE_KEY holds characters that no key has (a line break?): set it again")
    return key


def _proxy(target: Target) -> tuple[str, int] | None:
    if _is_here(target.host) or urllib.request.proxy_bypass(target.host):
        return None
    url = urllib.request.getproxies().get("https" if target.is_tls else "http", "")
    parts = urlsplit(url if "//" in url else f"//{url}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shut(connection: http.client.HTTPConnection) -> None:
    """Wake whoever reads from it; closing alone would not."""
    if (sock := connection.sock) is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return f"its answer is not HTTP ({type(error).__name__})"
