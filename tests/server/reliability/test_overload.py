"""Ten times as many clients as there are places: some get their whole answer, the others 429 and when to come again.

Whoever is let in is answered as fast as when nobody is turned away, and the server's memory stays as it was.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from load import Repeated, body_of
from neighbours import streamed
from probe import Probe
from raw_http import Reply, ask
from refusals import check_body

LIVE, QUEUE = 4, 4
CAPACITY = LIVE + QUEUE


@pytest.fixture(scope="module")
def probe(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """A server with few places."""
    config = tmp_path_factory.mktemp("overload") / "serve.toml"
    config.write_text(f"max_live = {LIVE}\nmax_queue_requests = {QUEUE}\ncache_tokens = 16384\naccess_log = false\n")
    server = start_server("--config", str(config))
    return Probe(server.url, server.process.pid)


def crowd(probe: Probe, n_clients: int, seconds: float) -> list[Reply]:
    """What so many clients get in so long; who is turned away comes again after about a second."""

    def one(i: int, k: int) -> Reply:
        reply = ask(probe.url, "POST", "/v1/completions", body_of(16, seed=i * 10_000 + k), wait=120)
        if reply.status == 429:
            time.sleep(random.uniform(0.5, 1.5))
        return reply

    with Repeated(one, n_clients) as repeated:
        time.sleep(seconds)
    replies: list[Reply] = repeated.results
    return replies


def test_ten_times_as_many_as_there_are_places(probe: Probe, is_full: bool, figure: Any) -> None:
    seconds = 60.0 if is_full else 3.0
    crowd(probe, CAPACITY, 2)  # warm: the allocator's arenas and threads are there
    alone = crowd(probe, CAPACITY, seconds)
    memory = probe.memory()
    replies = crowd(probe, 10 * CAPACITY, seconds)
    grown = probe.memory() - memory
    admitted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert len(admitted) + len(refused) == len(replies), {reply.status for reply in replies}
    assert len(refused) >= 9 * CAPACITY and len(admitted) > CAPACITY
    for reply in admitted:
        assert reply.json()["usage"]["completion_tokens"] == 16, reply.text
    for reply in refused:
        check_body(reply.json())
        assert reply.json()["code"] == "queue_full" and 1 <= int(reply.headers["retry-after"]) <= 120
        assert reply.seconds < 2, reply
    assert grown < 32 << 20, grown
    served = [reply for reply in alone if reply.status == 200]
    figure(
        "overload", clients=10 * CAPACITY, places=CAPACITY, admitted=len(admitted), refused=len(refused),
        admitted_s=statistics.median(r.seconds for r in admitted),
        admitted_alone_s=statistics.median(r.seconds for r in served),
        answers_per_s=len(admitted) / seconds, answers_alone_per_s=len(served) / seconds,
        refusal_ms=1e3 * statistics.median(r.seconds for r in refused), memory_mb=grown / 1e6,
    )  # fmt: skip


def test_afterwards_all_is_as_before(probe: Probe) -> None:
    held = probe.at_rest()
    assert held.running == held.waiting == 0
    body = body_of(12, seed=3)
    crowd(probe, 3 * CAPACITY, 1)
    probe.at_rest()
    first, again = streamed(probe.url, body), streamed(probe.url, body)
    assert first == again and first[2] == ["length"]


def test_too_many_prompt_tokens_are_too_many_requests(start_server: Callable[..., Any], tmp_path: Any) -> None:
    """The queue is bounded by what waits in it, not only by how many wait."""
    config = tmp_path / "serve.toml"
    config.write_text("max_live = 1\nmax_queue_tokens = 600\n")
    url = start_server("--config", str(config)).url

    def one(i: int, k: int) -> Reply:
        return ask(url, "POST", "/v1/completions", body_of(8, n_prompt=40, seed=i * 1000 + k))

    with Repeated(one, 12) as repeated:
        time.sleep(2)
    statuses = [reply.status for reply in repeated.results]
    assert set(statuses) == {200, 429}, set(statuses)
    messages = {json.loads(reply.body)["message"] for reply in repeated.results if reply.status == 429}
    assert all("600 prompt tokens" in message for message in messages), messages
