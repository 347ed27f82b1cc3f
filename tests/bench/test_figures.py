"""Figures of outcomes done by hand, and the names that vLLM gives them."""

import numpy as np
import pytest

from coterie.bench.figures import figures, goals_of, meets, percentile, text_of
from coterie.bench.load import Run
from coterie.bench.outcome import Outcome
from coterie.errors import RequestError


def run_of(*outcomes: Outcome, seconds: float = 10.0) -> Run:
    run = Run(len(outcomes))
    run.began, run.ended, run.outcomes = 0.0, seconds, list(outcomes)
    return run


TWO = (
    Outcome(0.0, 3.0, [1.0, 2.0, 3.0], n_prompt=10, n_output=3),
    Outcome(1.0, 5.0, [3.0, 5.0], n_prompt=30, n_output=5),  # several tokens in a piece
    Outcome(2.0, 2.5, error="status 429: busy", n_prompt=99),
)


def test_figures_by_hand() -> None:
    result = figures(run_of(*TWO), {"ttft": 1500.0}, [50, 95, 99])
    expected = {
        "duration": 10, "completed": 2, "failed": 1, "total_input_tokens": 40, "total_output_tokens": 8,
        "request_throughput": 0.2, "request_goodput": 0.1, "goodput_share": 1 / 3, "output_throughput": 0.8,
        "total_token_throughput": 4.8, "max_concurrent_requests": 2, "max_output_tokens_per_s": 3.5,
        "mean_ttft_ms": 1500, "median_ttft_ms": 1500, "std_ttft_ms": 500, "p50_ttft_ms": 1500, "p99_ttft_ms": 1990,
        "mean_tpot_ms": 750, "std_tpot_ms": 250, "mean_itl_ms": 4000 / 3, "median_itl_ms": 1000, "p95_itl_ms": 1900,
        "mean_e2el_ms": 3500, "p99_e2el_ms": 3990,
    }  # fmt: skip
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_of_nothing_there_are_no_means() -> None:
    result = figures(run_of(seconds=0.0), {}, [99])
    assert result["mean_ttft_ms"] is None and result["p99_itl_ms"] is None and result["request_throughput"] == 0
    assert result["request_goodput"] is None and "Mean TTFT (ms):                          -" in text_of(result, [99])


def test_the_printed_names_are_vllms() -> None:
    text = text_of(figures(run_of(*TWO), {"ttft": 1.0}, [99]) | {"max_concurrency": 8, "request_rate": 2.0}, [99])
    lines = text.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============" and lines[-1] == "=" * 50
    for name in (
        "Successful requests:", "Failed requests:", "Maximum request concurrency:", "Request rate configured (RPS):",
        "Benchmark duration (s):", "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):",
        "Request goodput (req/s):", "Output token throughput (tok/s):", "Peak output token throughput (tok/s):",
        "Peak concurrent requests:", "Total Token throughput (tok/s):", "Mean TTFT (ms):", "Median TPOT (ms):",
        "P99 ITL (ms):", "Mean E2EL (ms):",
    ):  # fmt: skip
        assert sum(line.startswith(name) for line in lines) == 1, name
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "Output token throughput (tok/s):         0.80" in lines


def test_percentiles_are_numpys() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for p in (0, 12.5, 50, 95, 99, 100):
        assert percentile(values, p) == pytest.approx(np.percentile(values, p))
    assert percentile([7.0], 99) == 7


def test_goals() -> None:
    assert goals_of(["ttft:500", "e2el:1e3"]) == {"ttft": 500, "e2el": 1000}
    for text in ("ttft", "ttft:", "itl:5", "ttft:-1", "ttft:nan", "ttft:inf", ":5"):
        with pytest.raises(RequestError, match="--goodput is"):
            goals_of([text])
    assert meets(TWO[0], {"ttft": 1000, "tpot": 1000}) and not meets(TWO[0], {"tpot": 999})
    assert not meets(TWO[2], {}) and meets(Outcome(0.0, 9.0, [9.0], n_output=1), {"tpot": 1})
