"""Half an hour of all kinds of requests, of which one in a hundred fails: memory stays, nothing gets stuck.

`make test` has the better part of a minute of it.
"""

import random
import statistics
import time
from typing import Any

from faulty_server import KINDS, landmine
from load import Repeated, random_request, read_a_while
from neighbours import Neighbours
from probe import Probe
from processes import script
from raw_http import ask

N_CLIENTS = 6
TEXT = "/v1/completions"


def test_memory_is_flat_and_nothing_gets_stuck(is_full: bool, figure: Any) -> None:
    seconds = 1800.0 if is_full else 20.0
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")

    def one(i: int, k: int) -> str:
        chance = random.Random(seed + i * 1_000_000 + k)
        kind = chance.random()
        if kind < 0.01:
            mine = landmine(chance.choice(KINDS[:8]))
            return f"fault {ask(url, 'POST', TEXT, {'prompt': [5, mine, 7], 'max_tokens': 4}, wait=90).status}"
        if kind < 0.03:
            return f"bad {ask(url, 'POST', TEXT, {'prompt': 5}).status}"
        if kind < 0.15:
            read_a_while(
                url, random_request(chance, k), chance.uniform(0, 0.3), is_streamed=True, is_abrupt=kind < 0.05
            )
            return "left"
        return f"sound {ask(url, 'POST', TEXT, random_request(chance, k), wait=90).status}"

    with script("faulty_server.py", "cache_tokens=32768", "max_live=8") as server:
        url, probe = server.url, Probe(server.url, server.pid)
        with Repeated(one, N_CLIENTS):
            time.sleep(60.0 if is_full else 5.0)  # the cache of prefixes fills up, the allocator's arenas grow
        before, samples = probe.at_rest(), []
        with Neighbours(url, n_tokens=12) as neighbours, Repeated(one, N_CLIENTS) as clients:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.5)
                samples.append(probe.memory())
        after = probe.at_rest(before)
        assert server.stop() == 0
    answers = clients.results
    assert {answer for answer in answers if "sound" in answer} == {"sound 200"}
    assert {answer for answer in answers if "bad" in answer} <= {"bad 400"}
    assert {answer for answer in answers if "fault" in answer} <= {"fault 500", "fault 503"}
    assert after.running == after.waiting == 0 and after.descriptors <= before.descriptors, (before, after)
    assert after.cache <= before.cache + 1e-9 and after.tasks <= before.tasks, (before, after)
    quarter = max(1, len(samples) // 4)
    first, last = statistics.median(samples[:quarter]), statistics.median(samples[-quarter:])
    assert last - first < (8 << 20 if is_full else 24 << 20), (first, last)
    figure(
        "soak", seconds=seconds, requests=len(answers), faults=sum("fault" in a for a in answers),
        left=sum(a == "left" for a in answers), memory_first_mb=first / 1e6, memory_last_mb=last / 1e6,
        neighbours=neighbours.n_answers,
    )  # fmt: skip
