"""A load's figures under the names that vLLM's `bench serve` gives them, in JSON and in print.

Percentiles interpolate between the two nearest (numpy's default). Goodput is requests a second that kept every goal;
`goodput_share` is the share of all requests that did, those that failed among them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.bench.load import Run
from coterie.bench.outcome import Outcome
from coterie.errors import RequestError

__all__ = ["GOALS", "METRICS", "figures", "goals_of", "meets", "percentile", "samples", "text_of"]

METRICS = {  # name: short, heading
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
GOALS = ("ttft", "tpot", "e2el")
_WIDTH, _COLUMN = 50, 40


def goals_of(pairs: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:100"]` as milliseconds by name. Raises `RequestError`."""
    goals = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in GOALS or not 0 <= value < float("inf"):
            raise RequestError(f"--goodput is {pair!r}, expected milliseconds such as ttft:500, tpot:100 or e2el:9000")
        goals[name] = value
    return goals


def meets(outcome: Outcome, goals: Mapping[str, float]) -> bool:
    """Whether a request kept every goal; one of a single token has no time per token to miss."""
    return outcome.error is None and all(1000 * (getattr(outcome, name) or 0.0) <= ms for name, ms in goals.items())


def samples(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Milliseconds by metric, of the requests that succeeded: one a request, of `itl` one a gap."""
    good = [o for o in outcomes if o.error is None]
    return {
        "ttft": [1000 * o.ttft for o in good],
        "tpot": [1000 * o.tpot for o in good if o.tpot is not None],
        "itl": [1000 * gap for o in good for gap in o.itls],
        "e2el": [1000 * o.e2el for o in good],
    }


def figures(run: Run, goals: Mapping[str, float], percentiles: Sequence[float]) -> dict[str, Any]:
    """All of them; what cannot be said (a mean of nothing) is None."""
    good = [o for o in run.outcomes if o.error is None]
    seconds = run.seconds or float("inf")
    n_input, n_output = sum(o.n_prompt for o in good), sum(o.n_output for o in good)
    n_met = sum(meets(o, goals) for o in run.outcomes)
    result: dict[str, Any] = {
        "duration": run.seconds,
        "completed": len(good),
        "failed": len(run.outcomes) - len(good),
        "total_input_tokens": n_input,
        "total_output_tokens": n_output,
        "request_throughput": len(good) / seconds,
        "request_goodput": n_met / seconds if goals else None,
        "goodput_share": n_met / len(run.outcomes) if goals and run.outcomes else None,
        "output_throughput": n_output / seconds,
        "total_token_throughput": (n_input + n_output) / seconds,
        "max_output_tokens_per_s": _peak_tokens(good, run.began),
        "max_concurrent_requests": _peak_requests(good),
    }
    for name, values in samples(run.outcomes).items():
        result |= {
            f"mean_{name}_ms": statistics.fmean(values) if values else None,
            f"median_{name}_ms": statistics.median(values) if values else None,
            f"std_{name}_ms": statistics.pstdev(values) if values else None,
        }
        for p in percentiles:
            result[f"p{p:g}_{name}_ms"] = percentile(values, p) if values else None
    return result


def text_of(result: Mapping[str, Any], percentiles: Sequence[float]) -> str:
    """The block that vLLM prints. `result` is that of `figures`, with the load's own settings."""
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", result["completed"]),
        ("Failed requests:", result["failed"]),
    ]
    if result.get("max_concurrency") is not None:
        rows.append(("Maximum request concurrency:", result["max_concurrency"]))
    if isinstance(result.get("request_rate"), float):
        rows.append(("Request rate configured (RPS):", result["request_rate"]))
    rows += [
        ("Benchmark duration (s):", result["duration"]),
        ("Total input tokens:", result["total_input_tokens"]),
        ("Total generated tokens:", result["total_output_tokens"]),
        ("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result["request_goodput"] is not None:
        rows.append(("Request goodput (req/s):", result["request_goodput"]))
        rows.append(("Requests within all goals (%):", 100 * (result["goodput_share"] or 0.0)))
    rows += [
        ("Output token throughput (tok/s):", result["output_throughput"]),
        ("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", result["max_concurrent_requests"]),
        ("Total Token throughput (tok/s):", result["total_token_throughput"]),
    ]
    lines += [_row(*row) for row in rows]
    for name, (short, heading) in METRICS.items():
        lines.append(f"{heading:-^{_WIDTH}}")
        lines += [_row(f"{word} {short} (ms):", result[f"{word.lower()}_{name}_ms"]) for word in ("Mean", "Median")]
        lines += [_row(f"P{p:g} {short} (ms):", result[f"p{p:g}_{name}_ms"]) for p in percentiles]
    return "\n".join([*lines, "=" * _WIDTH])


def percentile(values: Sequence[float], p: float) -> float:
    """[1, 2, 3, 4] at 50 is 2.5, at 95 3.85."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * p / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _row(name: str, value: Any) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<{_COLUMN}} {shown:<10}".rstrip()


def _peak_tokens(good: Sequence[Outcome], began: float) -> float:
    """Most tokens within one of the seconds since the start; a piece is its request's average number of tokens."""
    seconds: dict[int, float] = {}
    for o in good:
        for at in o.times:
            second = int(at - began)
            seconds[second] = seconds.get(second, 0.0) + o.n_output / len(o.times)
    return max(seconds.values(), default=0.0)


def _peak_requests(good: Sequence[Outcome]) -> int:
    """Most requests under way at one moment, from being sent to their end."""
    changes = sorted([(o.ended, -1) for o in good] + [(o.started, 1) for o in good])
    n = most = 0
    for _, change in changes:
        n += change
        most = max(most, n)
    return most
