"""How many experts must stay in memory: hit rates of caches against their size, by policy, arrangement and domain.

The stream that is simulated is one reader's: token after token, document after document, as if each token were decoded
alone. A batch asks for more at once and does better per load; so does a prompt that is read in one pass. What a miss
costs is another matter: this says how many there are.
"""

import math

from coterie.analysis.hit_rates import HitRates, cache_sizes, measure_hits
from coterie.analysis.prefetch import measure_recalls, prefetch_section
from coterie.analysis.replay import LAYER_POLICIES, POLICIES
from coterie.analysis.reuse import reuse_sections
from coterie.analysis.scan import Progress
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.stretches import take_sample, without_idle_slots
from coterie.analysis.trace import Trace

__all__ = ["SAMPLE", "sections"]

SAMPLE = 100_000  # tokens
_WORK, _LEAST = 5e8, (4096, 2048)  # comparisons of keys, but never fewer tokens: a cache per layer, a shared one
_NAMES = {"lru": "LRU", "lfu": "LFU", "least-stale": "least stale", "optimal": "optimal (Belady)"}
_WANTED = 0.9  # the hit rate that the answer is about


def sections(trace: Trace, *, sample: int | None = None, progress: Progress | None = None) -> list[Section]:
    """All that a trace says to one who keeps only some of the experts in memory, simulated on `sample` tokens.

    None: on SAMPLE tokens, fewer where the experts are so many that it would take long. The findings say how many.
    """
    report = progress or (lambda done, total: None)
    near = take_sample(trace, sample or _affordable(trace, is_shared=False))
    longest = min(2048, math.isqrt(2**31 // (trace.n_layers * trace.top_k)) - 300)  # so that keys have 32 bits
    far = take_sample(trace, sample or _affordable(trace, is_shared=True), lead=256, longest=longest)
    near, far = without_idle_slots([near, far])
    by_layer = measure_hits(trace, near, is_shared=False, progress=_part(report, 0))
    shared = measure_hits(trace, far, is_shared=True, progress=_part(report, 1))
    recalls = measure_recalls(trace, sample or SAMPLE, _part(report, 2))
    found = [_memory(trace, by_layer, shared), _domains(trace, by_layer)]
    return [*found, *reuse_sections(near), prefetch_section(trace, recalls)]


def _affordable(trace: Trace, *, is_shared: bool) -> int:
    """Tokens: a turn compares keys for each policy, size and expert asked for; of a shared cache by layer first."""
    L, E, K = trace.n_layers, trace.n_experts, trace.top_k
    sizes = len(cache_sizes(E, K)) + 1
    rows, policies = (2 * L + 4 * E, POLICIES) if is_shared else (E + 1, LAYER_POLICIES)
    return min(SAMPLE, max(int(_WORK / (L * rows * len(policies) * sizes * K)), _LEAST[is_shared]))


def _memory(trace: Trace, by_layer: HitRates, shared: HitRates) -> Section:
    everything, half = trace.n_layers * trace.n_experts, _half(trace, by_layer)
    plots = (
        _curves(shared, everything, "How many experts must stay in memory: a shared cache"),
        _curves(by_layer, everything, "How many experts must stay in memory: a cache per layer"),
    )
    return Section(
        "caching", "How many experts must stay in memory", _answer(trace, by_layer, shared, half),
        _columns(by_layer, shared), _rows(by_layer, shared, everything), plots,
        note=f"Simulated token by token: a cache for each layer on {by_layer.n_tokens:,} tokens, one for all layers on "
        f"{shared.n_tokens:,}, in stretches spread over the trace, each after tokens that fill the caches. Bands are "
        "95 % intervals over stretches. Least stale: experts go that their layer did not ask for at its last turn, the "
        "layer whose turn is furthest away first. Optimal: what is needed last goes; it knows the future.",
        facts={
            "experts": everything, "half": half, "wanted": _WANTED,
            "by_layer": _facts(by_layer, half, everything), "shared": _facts(shared, half, everything),
        },
    )  # fmt: skip


def _columns(by_layer: HitRates, shared: HitRates) -> tuple[str, ...]:
    both = ((by_layer, "a cache for each layer"), (shared, "one for all"))
    names = [f"{_NAMES[policy]}, {how}" for rates, how in both for policy in rates.policies]
    return ("experts in memory", "share of all", *names, "routing at random")


def _rows(by_layer: HitRates, shared: HitRates, everything: int) -> tuple[tuple[Cell, ...], ...]:
    """A size each, to all experts, which are not simulated: all are found."""
    rows: list[tuple[Cell, ...]] = []
    for size in sorted({*by_layer.sizes, *shared.sizes, everything}):
        cells = [
            1.0 if size == everything else rates.at(p, size) for rates in (by_layer, shared) for p in rates.policies
        ]  # fmt: skip
        rows.append((size, size / everything, *cells, size / everything))
    return tuple(rows)


def _answer(trace: Trace, by_layer: HitRates, shared: HitRates, half: int) -> str:
    everything = trace.n_layers * trace.n_experts
    if not by_layer.sizes:
        return f"A token needs all {trace.n_experts} experts of a layer at once: all {everything} must stay in memory."
    found, best = by_layer.at("lru", half), by_layer.at("optimal", half)
    if found is None or math.isnan(found):
        return "No token used an expert, so that none must stay in memory."
    least = by_layer.least("lru", _WANTED, everything)
    policy = max((p for p in shared.policies if p != "optimal"), key=lambda p: shared.at(p, half) or 0.0)
    return (
        f"With {half} of {everything} experts in memory, LRU in a cache for each layer finds {found:.1%} of those that "
        f"tokens ask for, {half / everything:.1%} if routing were random; the best possible policy {best:.1%}. "
        f"For {_WANTED:.0%}, LRU needs {least} of them. In one cache for all layers, {_NAMES[policy]} does best "
        f"({shared.at(policy, half):.1%})."
    )


def _curves(rates: HitRates, everything: int, title: str) -> Plot:
    x = [0.0 + size for size in (*rates.sizes, everything)]
    series, low, high = {}, {}, {}
    for p, policy in enumerate(rates.policies):
        name = _NAMES[policy]
        series[name], low[name], high[name] = (
            [*row[p].tolist(), 1.0] for row in (rates.rate_PM, rates.low_PM, rates.high_PM)
        )
    series["routing at random"] = [size / everything for size in x]
    return Plot(
        "lines",
        title,
        f"experts in memory, of {everything}",
        "hit rate",
        x,
        series,
        low,
        high,
        baselines=("routing at random",),
    )


def _facts(rates: HitRates, half: int, everything: int) -> dict[str, object]:
    return {
        "tokens": rates.n_tokens, "sizes": list(rates.sizes),
        "rates": {p: rates.rate_PM[i].tolist() for i, p in enumerate(rates.policies)},
        "at_half": {p: rates.at(p, half) for p in rates.policies},
        "least": {p: rates.least(p, _WANTED, everything) for p in rates.policies},
    }  # fmt: skip


def _half(trace: Trace, rates: HitRates) -> int:
    """The simulated size that is nearest to half of all experts."""
    middle = trace.n_layers * trace.n_experts / 2
    return min(rates.sizes, key=lambda size: abs(size - middle), default=trace.n_layers * trace.n_experts)


def _domains(trace: Trace, rates: HitRates) -> Section:
    everything, half = trace.n_layers * trace.n_experts, _half(trace, rates)
    found = {policy: _of_domains(rates, policy, half, len(trace.domains)) for policy in ("lru", "optimal")}
    rows = tuple((name, found["lru"][g], found["optimal"][g]) for g, name in enumerate(trace.domains))
    plot = Plot(
        "bars", f"Hit rate with {half} of {everything} experts in memory", "domain", "hit rate", list(trace.domains),
        {_NAMES[policy]: values for policy, values in found.items()},
        references={"routing at random": half / everything},
    )  # fmt: skip
    lru = {name: cell for name, cell, _ in rows if not math.isnan(cell)}
    return Section(
        "caching-domains", "Caching by domain", _say_domains(lru, half, everything),
        ("domain", *(_NAMES[p] for p in found)), rows, (plot,),
        note="A cache for each layer, all of one size; the same sample as above.", facts={"half": half, "lru": lru},
    )  # fmt: skip


def _say_domains(rates: dict[str, float], half: int, everything: int) -> str:
    if not rates:
        return "No token used an expert."
    best, worst = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
    found = f"With {half} of {everything} experts in memory, LRU finds {rates[best]:.1%} on {best}"
    if rates[best] == rates[worst]:
        return f"{found}."
    return f"{found}, where it does best, and {rates[worst]:.1%} on {worst}, where it does worst."


def _of_domains(rates: HitRates, policy: str, size: int, n_domains: int) -> list[float]:
    """Where all experts are in memory, all are found."""
    if size not in rates.sizes:
        return [1.0] * n_domains
    found = rates.domain_PGM[rates.policies.index(policy), :, rates.sizes.index(size)]
    return [float(rate) for rate in found]


def _part(report: Progress, index: int, of: int = 3) -> Progress:
    """The progress of one part, as that of the whole."""
    return lambda done, total: report(index * 1000 + done * 1000 // max(total, 1), of * 1000)
