"""A server process seen from outside: descriptors and memory from /proc, what is in flight from /metrics."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raw_http import ask

__all__ = ["Held", "Probe"]

_SAMPLE = re.compile(r"^(coterie_[a-z0-9_]+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Held:
    """What a server holds on to. `cache` is the share of the cache that cannot be had at once by a new request."""

    descriptors: int
    tasks: float
    running: float
    waiting: float
    cache: float
    engine: float  # requests that the engine itself knows


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
            values["coterie_engine_requests"],
        )

    def at_rest(self, like: Held | None = None, seconds: float = 20.0) -> Held:
        """What is held once nothing is in flight, and no more than `like`; the last state seen when time is up."""
        return self.once(lambda held: _is_idle(held) and (like is None or _is_within(held, like)), seconds)

    def once(self, is_so: Callable[[Held], bool], seconds: float) -> Held:
        """What is held once it is so; the last state seen when time is up."""
        end = time.monotonic() + seconds
        while not is_so(held := self.held()) and time.monotonic() < end:
            time.sleep(0.05)
        return held


def _is_idle(held: Held) -> bool:
    return held.running == held.waiting == held.engine == 0


def _is_within(held: Held, like: Held) -> bool:
    return held.descriptors <= like.descriptors and held.tasks <= like.tasks and held.cache <= like.cache
