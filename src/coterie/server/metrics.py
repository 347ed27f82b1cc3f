"""/metrics: what Prometheus reads. Names are `coterie_` and then vLLM's, so that boards made for it can be ported.

Two kinds: what the worker and the guard say as it happens (histograms, counts), and what is read off the engines when
somebody asks (`ModelMetrics`): gauges, tokens, and the rows of each expert of each layer, which cost nothing meanwhile.
Times are differences of one process's monotonic clock. A model that is loaded anew goes on from its old counts.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie.server.metrics_engine import EngineMetrics

if TYPE_CHECKING:
    from coterie.engine.sequence import Event
    from coterie.server.models import Models
    from coterie.server.state import State
    from coterie.server.ticket import Ticket

__all__ = ["Metrics", "Observed", "routes"]

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_SIZES = tuple(a * 10**b for b in range(5) for a in (1, 2, 5))


def routes(state: "State") -> list[Route]:
    """Nothing where nothing is measured."""
    metrics: Metrics | None = state.metrics
    if metrics is None:
        return []
    metrics.watch(state.models)

    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": content_type})

    return [Route("/metrics", scrape, methods=["GET"])]


class Metrics:
    """One server's, in a registry of its own. `of_model` is what `Models` asks for a worker's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._is_watching = False
        ProcessCollector(registry=self.registry)
        self.ttft = self._times("time_to_first_token", "From the request to its first token", _FIRST_TOKEN)
        self.between = Gaps()
        self.registry.register(self.between)
        self.whole = self._times("e2e_request_latency", "From the request to its end", _WHOLE)
        self.queue = self._times("request_queue_time", "Waiting for the engine", _WHOLE)
        self.prefill = self._times("request_prefill_time", "From the engine's start to the first token", _WHOLE)
        self.decode = self._times("request_decode_time", "From the first token to the last", _WHOLE)
        self.prompt = self._histogram("request_prompt_tokens", "Tokens of the prompt", _SIZES)
        self.generation = self._histogram("request_generation_tokens", "Tokens written, of all samples", _SIZES)
        self.ended = self._counter("request_success", "Requests that ended, by how", "model_name", "finished_reason")
        self.rejected = self._counter("request_rejected", "Requests never taken in", "model_name", "reason")
        self.http = self._counter("http_requests", "Answers by route", "handler", "method", "status")

    def of_model(self, name: str) -> "Observed":
        return Observed(self, name)

    def on_response(self, handler: str, method: str, status: int, seconds: float) -> None:
        """The guard has answered; 499: the client had left."""
        method = method if method in _METHODS else "other"
        self.http.labels(handler, method, str(status)).inc()

    def watch(self, models: "Models") -> None:
        """Read these models' engines from now on, at each scrape."""
        if not self._is_watching:
            self._is_watching = True
            self.registry.register(EngineMetrics(lambda: models.loaded))

    def _times(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return self._histogram(f"{name}_seconds", f"{words}, in seconds", buckets)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"coterie_{name}", words, ["model_name"], registry=self.registry, buckets=buckets)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"coterie_{name}", words, labels, registry=self.registry)


class Gaps(Collector):
    """The histogram of what happens at every token of everybody: a few adds on the event loop, no lock, no labels."""

    def __init__(self) -> None:
        self._models: dict[str, _Tally] = {}

    def of_model(self, name: str) -> "_Tally":
        return self._models.setdefault(name, _Tally())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        name, words = "coterie_inter_token_latency_seconds", "Between two steps that brought tokens, in seconds"
        family = HistogramMetricFamily(name, words, labels=["model_name"])
        for model, tally in self._models.items():
            bounds = (*map(floatToGoString, _BETWEEN), "+Inf")
            buckets = list(zip(bounds, accumulate(tally.counts), strict=True))
            family.add_metric([model], buckets, tally.sum)
        yield family


class _Tally:
    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(_BETWEEN) + 1), 0.0  # each its own; the last: longer than all bounds

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BETWEEN, seconds)] += 1
        self.sum += seconds


class Observed:
    """One model's observer. Called on the event loop, at each step of each request, so it keeps its children."""

    def __init__(self, metrics: Metrics, name: str):
        self._metrics, self._name = metrics, name
        self._ttft, self._whole, self._queue, self._prefill, self._decode = (
            h.labels(name) for h in (metrics.ttft, metrics.whole, metrics.queue, metrics.prefill, metrics.decode)
        )
        self._between = metrics.between.of_model(name)
        self._prompt, self._generation = metrics.prompt.labels(name), metrics.generation.labels(name)
        for reason in ("stop", "length", "error", "abort"):
            metrics.ended.labels(name, reason)  # 0 is a value too
        for reason in ("queue_full", "too_many_in_flight"):
            metrics.rejected.labels(name, reason)

    def on_events(self, ticket: "Ticket", events: "list[Event]", now: float) -> None:
        if ticket.is_done:
            return
        for event in events:
            if event.token_id is not None:
                break
        else:
            return
        if ticket.last_token_at is None:
            self._ttft.observe(now - ticket.submitted_at)
        else:
            self._between.observe(now - ticket.last_token_at)

    def on_finish(self, ticket: "Ticket") -> None:
        self._metrics.ended.labels(self._name, ticket.finish_reason or "abort").inc()
        self._whole.observe(time.monotonic() - ticket.submitted_at)
        self._prompt.observe(ticket.n_prompt)
        self._generation.observe(ticket.n_written)
        if ticket.started_at is not None:
            self._queue.observe(ticket.started_at - ticket.submitted_at)
        first, last = ticket.first_token_at, ticket.last_token_at
        if first is not None and last is not None:
            self._prefill.observe(first - (ticket.started_at or ticket.submitted_at))
            self._decode.observe(last - first)

    def on_reject(self, reason: str) -> None:
        self._metrics.rejected.labels(self._name, reason).inc()
