"""Requests that are larger than they may be, or cannot be told where they end: refused while they arrive, and not kept.

vLLM's CVE-2025-48956 was a header without bound; uvicorn with httptools takes 64 MB of it, which is why h11 reads here.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from raw_http import Connection, ask
from refusals import check_body

START = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MEGABYTE = 1 << 20
LARGE = {
    "one header": (START + b"X: ", b"x" * 65536),
    "a thousand headers and more": (START, b"X-Filler: " + b"y" * 200 + b"\r\n"),
    "a target": (b"GET /", b"a" * 65536),
    "a method": (b"", b"G" * 65536),
    "folded lines": (START + b"X: a\r\n", b" b\r\n" * 16384),
    "blank lines": (b"", b"\r\n" * 32768),
    "zeros": (b"", bytes(65536)),
}


def peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not let the highest memory be forgotten")


@pytest.mark.parametrize("name", LARGE)
def test_64_mb_of_header_are_refused_and_not_kept(server: Any, name: str, figure: Any) -> None:
    first, rest = LARGE[name]
    ask(server.url, "GET", "/v1/models")
    forget_peak(server.process.pid)
    before = peak(server.process.pid)
    status = sent = 0
    with Connection(server.url, 10) as connection:
        connection.socket.sendall(first)
        try:
            while sent < 64 * MEGABYTE:
                connection.socket.sendall(rest)
                sent += len(rest)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            status = connection.reply().status
        except (ConnectionError, TimeoutError):
            pass  # what was not read makes the kernel reset the connection, and the answer may be lost with it
    grown = peak(server.process.pid) - before
    assert status in (0, 400, 431), status
    assert sent < 64 * MEGABYTE, "all of it was taken"
    assert grown < 2 * MEGABYTE, grown
    assert ask(server.url, "GET", "/health").status == 200
    figure(f"64 MB of header: {name}", taken_mb=sent / MEGABYTE, memory_mb=grown / MEGABYTE)


def test_a_header_a_little_too_large_is_told_so(url: str) -> None:
    with Connection(url) as connection:
        connection.send(START + b"X: " + b"x" * 20_000 + b"\r\n\r\n")
        reply = connection.reply()
    assert reply.status == 431
    check_body(reply.json())


def test_chunks_without_end_are_counted(server: Any) -> None:
    forget_peak(server.process.pid)
    before = peak(server.process.pid)
    with Connection(server.url, 10) as connection:
        connection.socket.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 64 * MEGABYTE:
                connection.socket.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            assert connection.reply().status == 413
        except (ConnectionError, TimeoutError):
            pass
    assert peak(server.process.pid) - before < 16 * MEGABYTE  # of which 4 MB are allowed


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"Content-Length: -2\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: 0x2\r\n\r\n{}",
        b"Content-Length: 2, 2\r\n\r\n{}",
        b"Content-Length: 9" + b"9" * 400 + b"\r\n\r\n{}",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n\r\n",
        b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_where_a_body_ends_is_never_a_matter_of_opinion(url: str, rest: bytes) -> None:
    """Nothing that follows can be taken for a second request: a 4xx, or the connection is closed."""
    with Connection(url, 15) as connection:
        connection.send(POST + rest)
        try:
            assert 400 <= connection.reply().status < 500
        except ConnectionError:
            pass
    assert ask(url, "GET", "/health").status == 200
