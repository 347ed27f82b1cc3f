"""Clients that do not read, and 500 that send half a request and wait: they are ended, and others need not wait."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from load import Repeated, body_of, first_token
from neighbours import Neighbours
from probe import Probe
from raw_http import Connection, Stream, ask, request_bytes

WHOLE = request_bytes("POST", "/v1/completions", body_of(4))
END = WHOLE.index(b"\r\n\r\n")  # of the headers
HALVES = (
    b"P", WHOLE[:20], WHOLE[:60], WHOLE[: END + 2], WHOLE[: END + 4], WHOLE[:-1],
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a",
)  # fmt: skip


@pytest.fixture(scope="module")
def probe(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """A server with little patience."""
    config = tmp_path_factory.mktemp("slow") / "serve.toml"
    config.write_text(
        "header_timeout = 4\nbody_timeout = 4\nsend_timeout = 2\nkeep_alive = 1\nreader_buffer = 65536\n"
        "cache_tokens = 65536\n"
    )
    server = start_server("--config", str(config))
    probe = Probe(server.url, server.process.pid)
    for i in range(4):
        ask(probe.url, "POST", "/v1/completions", body_of(8, seed=i))
    return probe


def delays(url: str, n: int) -> list[float]:
    return [first_token(url, body_of(4, seed=1000 + i))[0] for i in range(n)]


def test_half_sent_requests_are_ended_and_delay_nobody(probe: Probe, is_full: bool, figure: Any) -> None:
    before, n = probe.at_rest(), 500 if is_full else 50
    alone = delays(probe.url, 40)
    halves = []
    try:
        for i in range(n):
            halves.append(Connection(probe.url, 15))
            halves[-1].send(HALVES[i % len(HALVES)])
        begun = time.monotonic()
        beside = delays(probe.url, 40)
        assert time.monotonic() - begun < 20
        statuses = [ending(half) for half in halves]
    finally:
        for half in halves:
            half.close()
    assert set(statuses) <= {408, 0}, statuses
    after = probe.at_rest(before)
    assert after.descriptors <= before.descriptors and after.tasks <= before.tasks, (before, after)
    figure(
        "half-sent requests", clients=n, first_token_alone_ms=1e3 * statistics.median(alone),
        first_token_beside_ms=1e3 * statistics.median(beside),
        ratio=statistics.median(beside) / statistics.median(alone),
    )  # fmt: skip


def ending(half: Connection) -> int:
    """The status that a half-sent request gets, 0 for a connection that is closed without one."""
    try:
        return half.reply().status
    except ConnectionError:
        return 0


def test_drop_by_drop_is_not_a_way_to_stay(probe: Probe) -> None:
    """A byte each half second: the clock is that of the whole header, not of its last byte."""
    with Connection(probe.url, 1) as connection:
        begun = time.monotonic()
        try:
            for byte in WHOLE:
                connection.socket.sendall(bytes([byte]))
                time.sleep(0.5)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert 2 < time.monotonic() - begun < 12


def test_slow_readers_are_ended_and_delay_nobody(probe: Probe, is_full: bool, figure: Any) -> None:
    """Beside readers that do not read, others wait no longer than beside as many that do."""
    before, n = probe.at_rest(), 30 if is_full else 8
    body = body_of(1500, logprobs=5, return_routing="stream")
    with Neighbours(probe.url, n_tokens=12):
        with Repeated(lambda i, k: first_token(probe.url, {**body, "max_tokens": 60, "seed": i}), n):
            beside_fast = delays(probe.url, 20)
        readers = [Stream(probe.url, "/v1/completions", {**body, "seed": i}, receive_buffer=2048) for i in range(n)]
        try:
            beside_slow = delays(probe.url, 20)
            after = probe.at_rest(before, 90)
        finally:
            for reader in readers:
                reader.close()
    assert after.running == 0 and after.descriptors <= before.descriptors, (before, after)
    figure(
        "slow readers", clients=n, first_token_beside_fast_ones_ms=1e3 * statistics.median(beside_fast),
        first_token_beside_slow_ones_ms=1e3 * statistics.median(beside_slow),
        ratio=statistics.median(beside_slow) / statistics.median(beside_fast),
    )  # fmt: skip


def test_a_connection_that_says_nothing_is_closed(probe: Probe) -> None:
    with Connection(probe.url, 10) as connection:
        assert ending(connection) in (0, 408)
