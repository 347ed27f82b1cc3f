"""1,000 clients that leave at a random moment: waiting, while their prompt is read, in the middle of their answer.

Nothing of theirs may stay: no slot, no page of the cache, no task, no descriptor. Several peers go on computing for
those who do not stream (vLLM #54947).
"""

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
from load import body_of, in_parallel, random_request, read_a_while
from neighbours import Neighbours
from probe import Probe
from raw_http import Connection, ask, request_bytes

N_THREADS = 12  # three times as many as are answered at a time, so that most of them wait


@pytest.fixture(scope="module")
def probe(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """A server that answers four at a time and lets many wait."""
    config = tmp_path_factory.mktemp("disconnects") / "serve.toml"
    config.write_text("max_live = 4\ncache_tokens = 16384\nkeep_alive = 1\n")
    server = start_server("--config", str(config))
    probe = Probe(server.url, server.process.pid)
    in_parallel(lambda i: ask(probe.url, "POST", "/v1/completions", body_of(8, seed=i)), range(16), 8)  # warm
    return probe


def test_nothing_stays_of_those_who_leave(probe: Probe, is_full: bool, figure: Any) -> None:
    before, memory, n = probe.at_rest(), probe.memory(), 1000 if is_full else 100
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")

    def leave(i: int) -> int:
        chance = random.Random(seed + i)
        seconds = chance.choice((0.0, 0.01, chance.uniform(0, 0.3), chance.uniform(0, 1.5), chance.uniform(0, 3)))
        return read_a_while(
            probe.url,
            random_request(chance, i),
            seconds,
            is_streamed=chance.random() < 0.5,
            is_abrupt=chance.random() < 0.5,
        )

    with Neighbours(probe.url, n_tokens=12) as neighbours:
        n_bytes = in_parallel(leave, range(n), N_THREADS)
    after = probe.at_rest(before)
    assert after.running == after.waiting == 0, after
    assert after.descriptors <= before.descriptors and after.tasks <= before.tasks, (before, after)
    assert after.cache <= before.cache + 1e-9, (before, after)
    assert 0 < sum(b > 0 for b in n_bytes) < n, "they left neither early nor late"
    grown = (probe.memory() - memory) / 1e6
    figure(
        "disconnects", clients=n, left_before_a_byte=sum(b == 0 for b in n_bytes), leaked_descriptors=0, leaked_tasks=0,
        leaked_pages=0, memory_mb=grown, neighbours=neighbours.n_answers,
    )  # fmt: skip


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("when", ["queued", "in prompt", "in decode"])
def test_one_who_leaves_is_gone_at_once(probe: Probe, when: str, is_streamed: bool) -> None:
    """Who waits behind others, whose prompt is read, whose answer is written."""
    others = [Connection(probe.url) for _ in range(4 if when == "queued" else 0)]
    try:
        for i, other in enumerate(others):
            other.send(request_bytes("POST", "/v1/completions", {**body_of(800, seed=i), "stream": True}))
            other.head()
        n_prompt, seconds = (200, 0.05) if when == "in prompt" else (1, 0.4)
        body = body_of(800, n_prompt=n_prompt, seed=99)
        read_a_while(probe.url, body, seconds, is_streamed=is_streamed, is_abrupt=False)
        held = probe.once(lambda held: held.engine <= len(others), seconds=1)
        assert held.waiting == 0 and held.running <= len(others) and held.engine <= len(others), held
    finally:
        for other in others:
            other.close()
    assert probe.at_rest(seconds=5).running == 0


def test_half_a_farewell_is_no_reason_to_hang(probe: Probe) -> None:
    """A client that has said all it has to say and still listens: answered or ended, never kept."""
    before = probe.at_rest()
    for _ in range(20):
        with Connection(probe.url, 20) as connection:
            connection.send(request_bytes("POST", "/v1/completions", body_of(4)))
            connection.socket.shutdown(socket.SHUT_WR)
            try:
                assert connection.reply().status == 200
            except ConnectionError:
                pass
    after = probe.at_rest(before)
    assert after.descriptors <= before.descriptors and after.running == 0, (before, after)
