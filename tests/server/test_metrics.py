"""What Prometheus reads after requests of known sizes, and that it costs the requests nothing that they can see."""

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from coterie.engine.stats import EngineStats
from coterie.server.metrics import _BETWEEN, Gaps, Metrics
from coterie.server.metrics_engine import EngineMetrics, load_cv, load_entropy

A6 = re.findall(
    r"\S+",
    """num_requests_running num_requests_waiting kv_cache_usage_perc expert_cache_resident_bytes model_info
    prompt_tokens_total generation_tokens_total request_success_total request_rejected_total prefix_cache_queries_total
    prefix_cache_hits_total http_requests_total time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
    e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
    request_decode_time_seconds_bucket request_prompt_tokens_bucket request_generation_tokens_bucket expert_tokens_total
    router_entropy expert_load_cv expert_cache_hits_total expert_cache_misses_total expert_transfer_bytes_total""",
)


def values(text: str) -> dict[str, float]:
    """Each line of a scrape by its name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def scrape(
    asgi: Callable[..., Any], serving: Callable[..., Any], bodies: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """What /metrics says before these requests and after."""

    async def run() -> list[dict[str, float]]:
        metrics = Metrics()
        async with serving(metrics=metrics) as app:
            found = [values((await asgi(app, "GET", "/metrics")).body.decode())]
            for body in bodies:
                await asgi(app, "POST", "/v1/completions", body)
            found.append(values((await asgi(app, "GET", "/metrics")).body.decode()))
            return found

    return asyncio.run(run())


def test_names_and_figures_after_three_requests(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    ids = list(range(300, 420))
    bodies = [
        {"prompt": ids, "max_tokens": 7, "ignore_eos": True},
        {"prompt": ids, "max_tokens": 5, "ignore_eos": True, "n": 2, "stream": True},
        {"prompt": "x", "temperature": -1},
    ]
    before, after = scrape(asgi, serving, bodies)
    names = {re.sub(r"\{.*", "", name) for name in after}
    assert [n for n in A6 if f"coterie_{n}" not in names] == []
    of = 'model_name="demo"'
    assert after[f"coterie_prompt_tokens_total{{{of}}}"] == 240
    assert after[f"coterie_generation_tokens_total{{{of}}}"] == 17
    assert after[f"coterie_prefix_cache_queries_total{{{of}}}"] == 240
    assert after[f"coterie_prefix_cache_hits_total{{{of}}}"] == 119  # all but the last token, the second time
    assert after[f'coterie_request_success_total{{finished_reason="length",{of}}}'] == 2
    assert after[f"coterie_request_generation_tokens_sum{{{of}}}"] == 17
    assert after[f"coterie_request_prompt_tokens_sum{{{of}}}"] == 240
    assert after[f"coterie_time_to_first_token_seconds_count{{{of}}}"] == 2
    assert after[f"coterie_request_queue_time_seconds_count{{{of}}}"] == 2
    assert after[f"coterie_e2e_request_latency_seconds_count{{{of}}}"] == 2
    assert after[f"coterie_inter_token_latency_seconds_count{{{of}}}"] == 6 + 4  # steps, not tokens
    assert after['coterie_http_requests_total{handler="/v1/completions",method="POST",status="200"}'] == 2
    assert after['coterie_http_requests_total{handler="/v1/completions",method="POST",status="400"}'] == 1
    assert after[f"coterie_num_requests_running{{{of}}}"] == 0
    assert before[f"coterie_prompt_tokens_total{{{of}}}"] == 0
    assert before[f'coterie_request_success_total{{finished_reason="length",{of}}}'] == 0


def test_every_row_of_every_layer_is_counted_once(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    _, after = scrape(asgi, serving, [{"prompt": list(range(300, 350)), "max_tokens": 6, "ignore_eos": True}])
    rows: dict[str, float] = {}
    for name, value in after.items():
        if match := re.match(r'coterie_expert_tokens_total\{expert="\d+",layer="(\d+)"', name):
            rows[match[1]] = rows.get(match[1], 0) + value
    assert len(rows) > 1 and set(rows.values()) == {(50 + 5) * 2}  # the last token is not read
    assert after['coterie_expert_cache_hits_total{model_name="demo"}'] == sum(rows.values())


def test_without_metrics_there_is_no_route(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def run() -> int:
        async with serving() as app:
            return int((await asgi(app, "GET", "/metrics")).status)

    assert asyncio.run(run()) == 404


def test_a_scrape_in_openmetrics_where_it_is_asked_for(asgi: Callable[..., Any], serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving(metrics=Metrics()) as app:
            return await asgi(app, "GET", "/metrics", None, {"accept": "application/openmetrics-text; version=1.0.0"})

    answer = asyncio.run(run())
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_the_histogram_of_gaps_is_what_the_library_would_have_counted() -> None:
    values = [0.0, 0.001, 0.0011, 0.01, 0.3, 9.0, 10.0, 11.0]
    gaps, registry = Gaps(), CollectorRegistry()
    theirs = Histogram("x", "", ["model_name"], registry=registry, buckets=_BETWEEN)
    for value in values:
        gaps.of_model("m").observe(value)
        theirs.labels("m").observe(value)
    (family,) = gaps.collect()
    expected = {s.labels["le"]: s.value for f in theirs.collect() for s in f.samples if s.name == "x_bucket"}
    assert {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")} == expected
    assert [s.value for s in family.samples if s.name.endswith("_sum")] == [pytest.approx(sum(values))]


def test_unknown_methods_and_paths_have_one_label() -> None:
    metrics = Metrics()
    for n in range(50):
        metrics.on_response("unknown", f"M{n}", 404, 0.0)
    assert [s.value for f in metrics.http.collect() for s in f.samples if s.name.endswith("_total")] == [50.0]


class Fake:
    """Enough of a served model: its engine can be replaced."""

    def __init__(self, rows: list[list[int]]):
        self.id, self.worker, self.engine, self.lm = "m", self, self, None
        self.n_waiting = self.n_in_flight = self.n_running = 0
        self.cache_usage = 0.25
        self.stats = EngineStats(np.array(rows), prompt_tokens=10)


def test_counts_go_on_when_an_engine_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineMetrics, "_bits_of", lambda self, one: [])
    served = Fake([[1, 3], [2, 2]])
    metrics = EngineMetrics(lambda: [served])  # type: ignore[list-item]

    def found() -> dict[str, float]:
        samples = [s for family in metrics.collect() for s in family.samples]
        return {f"{s.name} {s.labels.get('layer', '')}{s.labels.get('expert', '')}".strip(): s.value for s in samples}

    first = found()
    assert (first["coterie_prompt_tokens_total"], first["coterie_expert_tokens_total 01"]) == (10, 3)
    served.stats = EngineStats(np.array([[5, 0], [0, 0]]), prompt_tokens=4)
    second = found()
    assert (second["coterie_prompt_tokens_total"], second["coterie_expert_tokens_total 00"]) == (14, 6)
    assert second == found()


def test_load_measures_of_cases_done_by_hand() -> None:
    assert load_entropy(np.array([1, 1, 0, 0])) == pytest.approx(math.log(2))
    assert load_entropy(np.array([7, 7, 7, 7])) == pytest.approx(math.log(4))
    assert load_entropy(np.array([9, 0])) == 0 and load_cv(np.array([3, 3])) == 0
    assert load_cv(np.array([4, 0])) == pytest.approx(1)
    assert math.isnan(load_entropy(np.zeros(4, np.int64))) and math.isnan(load_cv(np.zeros(4, np.int64)))


def test_a_real_server_has_them_and_its_own_process(server: Any) -> None:
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "ignore_eos": True})
    found = values(server.get("/metrics").body.decode())
    assert found['coterie_request_success_total{finished_reason="length",model_name="demo"}'] >= 1
    assert found['coterie_model_info{model_name="demo",quant="8 bit, groups of 32",version="0.1.0"}'] == 1
    assert found["process_resident_memory_bytes"] > 1 << 20
