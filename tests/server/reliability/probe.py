"""A server process seen from outside: descriptors and memory from /proc, what is in flight from /metrics."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raw_http import ask

__all__ = ["Held", "Probe"]

_SAMPLE = re.compile(r"^(coterie_[a-z0-9_]+)(?:\{[^}]*\})? ([^ ]+)", re.MULTILINE)


@dataclass(frozen=True)
class Held:
    """What a server holds on to. `cache` is the share of the cache that cannot be had at once by a new request."""

    descriptors: int
    tasks: float
    running: float
    waiting: float
    cache: float


class Probe:
    """Looks at the server at `url`, which is process `pid`. `headers`: the key, where one is needed."""

    def __init__(self, url: str, pid: int, headers: Mapping[str, str] | None = None):
        self.url, self.pid, self._headers = url, pid, headers

    def gauge(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = ask(self.url, "GET", "/metrics", headers=self._headers).text
        values = [float(value) for found, value in _SAMPLE.findall(text) if found == name]
        assert values, f"/metrics has no {name}"
        return sum(values)

    def memory(self) -> int:
        """Resident bytes that are the process's own: pages of files (the weights, libraries) come and go."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def held(self) -> Held:
        text = ask(self.url, "GET", "/metrics", headers=self._headers).text
        values: dict[str, float] = {}
        for name, value in _SAMPLE.findall(text):
            values[name] = values.get(name, 0.0) + float(value)
        return Held(
            len(os.listdir(f"/proc/{self.pid}/fd")),
            values["coterie_tasks"],
            values["coterie_num_requests_running"],
            values["coterie_num_requests_waiting"],
            values["coterie_kv_cache_usage_perc"],
        )

    def at_rest(self, like: Held | None = None, seconds: float = 20.0) -> Held:
        """What is held once nothing is in flight, and no more than `like`; the last state seen when time is up."""
        end = time.monotonic() + seconds
        while True:
            held = self.held()
            is_idle = held.running == held.waiting == 0
            if (is_idle and (like is None or _is_within(held, like))) or time.monotonic() > end:
                return held
            time.sleep(0.1)


def _is_within(held: Held, like: Held) -> bool:
    return held.descriptors <= like.descriptors and held.tasks <= like.tasks and held.cache <= like.cache
