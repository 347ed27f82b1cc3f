"""Bytes on a real connection: what is half sent, too large, or no HTTP."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def quick(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that does not wait for long."""
    file = tmp_path_factory.mktemp("config") / "serve.toml"
    file.write_text(
        "header-timeout = 0.6\nbody-timeout = 0.6\nkeep-alive = 1\nmax-connections = 700\nmax-body = 100000\n"
    )
    return start_server("--config", str(file))


@contextlib.contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        yield sock


def answer(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


HEAD = b"GET /live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /live HTTP/1.1\r\n", HEAD, HEAD + b"X-A: 1\r\nX-"])
def test_headers_that_do_not_come(quick: Any, sent: bytes) -> None:
    with connected(quick) as sock:
        start = time.monotonic()
        sock.sendall(sent)
        got = answer(sock)
        assert got.startswith(b"HTTP/1.1 408 ") and b"header_timeout" in got
        assert 0.4 < time.monotonic() - start < 5


def test_headers_that_come_drop_by_drop_have_no_more_time(quick: Any) -> None:
    with connected(quick) as sock:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in HEAD * 50:
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 5


def test_the_second_request_of_a_connection_is_timed_too(quick: Any) -> None:
    with connected(quick) as sock:
        sock.sendall(HEAD + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.1)
        sock.sendall(b"GET /li")
        assert b"HTTP/1.1 408 " in answer(sock)


def test_a_kept_connection_serves_again(quick: Any) -> None:
    with connected(quick) as sock:
        for _ in range(3):
            sock.sendall(HEAD + b"\r\n")
            got = sock.recv(65536)
            while not got.endswith(b'{"status":"ok"}'):
                got += sock.recv(65536)
            assert got.startswith(b"HTTP/1.1 200 ")


def test_a_body_that_does_not_come(quick: Any) -> None:
    with connected(quick) as sock:
        sock.sendall(b"POST /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        got = answer(sock)
        assert got.startswith(b"HTTP/1.1 408 ") and b"body_timeout" in got


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),  # TLS
        (b"GET\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (HEAD + b"Host: evil\r\n\r\n", b"400"),
        (HEAD + b"A b: c\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501"),
        (b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (HEAD + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_what_is_not_a_request(quick: Any, sent: bytes, status: bytes) -> None:
    with connected(quick) as sock:
        sock.sendall(sent)
        got = answer(sock)
        assert got[9:12] in (status, b"400") and b'"error"' in got and b"Traceback" not in got


def test_too_large_a_body_is_answered_although_it_is_still_being_sent(quick: Any) -> None:
    with connected(quick) as sock:
        sock.sendall(b"POST /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(3):
            sock.sendall(b"x" * 100_000)
        assert b"request_too_large" in answer(sock)


def test_an_endless_chunked_body_is_cut_off(quick: Any) -> None:
    with connected(quick) as sock:
        sock.sendall(b"POST /live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10:
                sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                time.sleep(0.001)
        assert time.monotonic() - start < 9


def test_five_hundred_half_sent_requests_do_no_harm(quick: Any) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connected(quick)).sendall(HEAD)
        start = time.monotonic()
        assert quick.get("/ready").status == 200
        assert time.monotonic() - start < 2
        time.sleep(1)
    assert quick.get("/ready").status == 200


def test_more_connections_than_allowed_are_closed(quick: Any) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(quick)) for _ in range(710)]
        time.sleep(0.1)
        assert answer(socks[-1]) == b""
        time.sleep(1)
        assert quick.get("/ready").status == 200
