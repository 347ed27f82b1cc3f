"""What is read off the engines when somebody scrapes: gauges of now, and counts that only grow.

All experts are in memory, so every read of one is a hit and nothing is transferred; the names are there for the day
when they are not. An engine's numbers are written by its thread and read here: each is whole, one may be a step newer
than the next.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coterie import __version__
from coterie.engine.stats import EngineStats
from coterie.quant.report import PartBits, bits_of

if TYPE_CHECKING:
    from coterie.server.models import Served

__all__ = ["EngineMetrics", "load_cv", "load_entropy"]

_COUNTS = {  # of EngineStats
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts taken up, those out of the cache too"),
    "generation_tokens": ("generated_tokens", "Tokens written"),
    "prefix_cache_queries": ("prefix_queries", "Tokens of prompts that were looked up in the prefix cache"),
    "prefix_cache_hits": ("cached_tokens", "Of those, found"),
    "spec_decode_num_draft_tokens": ("drafted", "Tokens guessed"),
    "spec_decode_num_accepted_tokens": ("accepted", "Of those, that came true"),
    "engine_passes": ("passes", "Forward passes"),
}


class EngineMetrics(Collector):
    """`loaded` gives the models in memory at this moment."""

    def __init__(self, loaded: "Callable[[], Sequence[Served]]"):
        self._loaded = loaded
        self._seen: dict[str, _Counts] = {}
        self._bits: dict[str, tuple[int, list[PartBits]]] = {}  # by model, with whose they are

    def collect(self) -> Iterator[Metric]:
        served = list(self._loaded())
        for one in served:
            self._seen.setdefault(one.id, _Counts()).follow(one.worker.engine.stats)
        yield from self._gauges(served)
        for name, (field, words) in _COUNTS.items():
            family = CounterMetricFamily(f"coterie_{name}", words, labels=["model_name"])
            for model, counts in self._seen.items():
                family.add_metric([model], counts.total(field))
            yield family
        yield from self._experts()

    def _gauges(self, served: "Sequence[Served]") -> Iterator[Metric]:
        running = _gauge("num_requests_running", "Requests at work")
        waiting = _gauge("num_requests_waiting", "Requests that the engine has not begun with")
        held = _gauge("engine_requests", "Requests that the engine holds, waiting or at work, cancelled ones too")
        usage = _gauge("kv_cache_usage_perc", "Of the cache's pages, the share held by requests at work; 1 is all")
        resident = _gauge("expert_cache_resident_bytes", "Weights of experts in memory")
        info = _gauge("model_info", "1, with what the model is", "version", "quant")
        for one in served:
            n_waiting = one.worker.n_waiting
            running.add_metric([one.id], one.worker.n_in_flight - n_waiting)
            waiting.add_metric([one.id], n_waiting)
            held.add_metric([one.id], one.worker.engine.n_waiting + one.worker.engine.n_running)
            usage.add_metric([one.id], one.worker.engine.cache_usage)
            bits = self._bits_of(one)
            resident.add_metric([one.id], sum(b.nbytes for b in bits if b.part == "experts"))
            info.add_metric([one.id, __version__, _quant(bits)], 1)
        yield from (running, waiting, held, usage, resident, info)
        yield GaugeMetricFamily("coterie_tasks", "Tasks of the event loop, this scrape's own too", _n_tasks())

    def _bits_of(self, one: "Served") -> list[PartBits]:
        if (known := self._bits.get(one.id)) is None or known[0] != id(one.lm):
            known = self._bits[one.id] = id(one.lm), bits_of(one.lm.model)
        return known[1]

    def _experts(self) -> Iterator[Metric]:
        rows = _counter("expert_tokens", "Tokens that the expert of this layer has read", "layer", "expert")
        entropy = _gauge("router_entropy", "Of the layer's load over its experts, in nats; ln E is even", "layer")
        spread = _gauge("expert_load_cv", "Standard deviation of the layer's load over its mean; 0 is even", "layer")
        hits = _counter("expert_cache_hits", "Reads of an expert that was in memory")
        misses = _counter("expert_cache_misses", "Reads of an expert that was not")
        moved = _counter("expert_transfer_bytes", "Bytes of experts brought into memory to be read")
        for model, counts in self._seen.items():
            rows_LE = counts.experts_LE()
            for layer, rows_E in enumerate(rows_LE):
                for expert, n in enumerate(rows_E.tolist()):
                    rows.add_metric([model, str(layer), str(expert)], n)
                entropy.add_metric([model, str(layer)], load_entropy(rows_E))
                spread.add_metric([model, str(layer)], load_cv(rows_E))
            hits.add_metric([model], int(rows_LE.sum()))
            misses.add_metric([model], 0)
            moved.add_metric([model], 0)
        yield from (rows, entropy, spread, hits, misses, moved)


class _Counts:
    """A model's counts over all engines it has had: one that failed, or went when the model was loaded anew."""

    def __init__(self) -> None:
        self._all: list[EngineStats] = []

    def follow(self, stats: EngineStats) -> None:
        if not any(known is stats for known in self._all):
            self._all.append(stats)

    def total(self, field: str) -> int:
        return sum(getattr(stats, field) for stats in self._all)

    def experts_LE(self) -> NDArray[np.int64]:
        """Of the engines whose model had the last one's shape."""
        last = self._all[-1].expert_tokens_LE
        same = (s.expert_tokens_LE for s in self._all if s.expert_tokens_LE.shape == last.shape)
        return sum(same, np.zeros_like(last))


def _n_tasks() -> int:
    """0 where no event loop runs in this thread."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def load_entropy(rows_E: NDArray[np.int64]) -> float:
    """Entropy in nats of the shares of a layer's load; NaN before the first token.

    [1, 1, 0, 0] has 0.693, half of ln 4: two of four experts do all the work.
    """
    if not rows_E.sum():
        return math.nan
    shares = rows_E[rows_E > 0] / rows_E.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0


def load_cv(rows_E: NDArray[np.int64]) -> float:
    """Coefficient of variation of a layer's load; NaN before the first token."""
    return float(rows_E.std() / rows_E.mean()) if rows_E.sum() else math.nan


def _quant(bits: Iterable[PartBits]) -> str:
    """The format of most of the weights."""
    weights: dict[str, int] = {}
    for b in bits:
        weights[b.format] = weights.get(b.format, 0) + b.n_weights
    return max(weights, key=lambda name: weights[name], default="none")


def _gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"coterie_{name}", words, labels=["model_name", *labels])


def _counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"coterie_{name}", words, labels=["model_name", *labels])
