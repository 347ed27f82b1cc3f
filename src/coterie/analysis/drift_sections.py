"""What the drift between checkpoints shows, as findings: agreement by layer and by domain, saturation.

The last trace given is the reference of saturation; neighbours in the order given are compared for drift.
Shapes: L layers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.analysis.drift import Drift, check_comparable, measure_drift
from coterie.analysis.figures import interval_series, percent
from coterie.analysis.scan import Progress
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace
from coterie.errors import DataError

__all__ = ["compare_traces"]

_COLUMNS = (
    "from", "to", "layer", "first choice same %", "±", "by chance", "sets in common %", "±", "by chance",
    "same if renamed %", "weight moved %", "shares moved %",
)  # fmt: skip


def compare_traces(traces: Sequence[Trace], names: Sequence[str], progress: Progress | None = None) -> list[Section]:
    """Findings on two or more traces of one text, oldest first; `DataError` where they cannot be compared."""
    if len(traces) < 2:
        raise DataError("a comparison needs two traces or more of the same text: coterie trace compare A B")
    if len(traces[0]) == 0:
        raise DataError(f"{names[0]} holds no tokens, so there is nothing to compare")
    check_comparable(traces, names)
    last = len(traces) - 1
    steps = [(i, i + 1) for i in range(last)]
    pairs = list(dict.fromkeys(steps + [(i, last) for i in range(last)]))
    found = measure_drift(traces, pairs, progress)
    for (a, b), d in found.items():
        if not np.isfinite(d.first.value).any():
            raise DataError(f"no token was read by an expert in both {names[a]} and {names[b]}: nothing to compare")
    sections = [_drift({pair: found[pair] for pair in steps}, names, traces[0])]
    if len(traces[0].domains) > 1:
        sections.append(_by_domain({pair: found[pair] for pair in steps}, names, traces[0]))
    if len(traces) > 2:
        sections.append(_saturation([found[i, last] for i in range(last)], names))
    return sections


def _drift(found: dict[tuple[int, int], Drift], names: Sequence[str], trace: Trace) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for (a, b), d in found.items():
        for layer in range(trace.n_layers):
            rows.append((
                names[a], names[b], layer,
                percent(d.first.value[layer]), _half(d.first.low[layer], d.first.high[layer]),
                percent(d.first_by_chance[layer]), percent(d.sets.value[layer]),
                _half(d.sets.low[layer], d.sets.high[layer]), percent(d.sets_by_chance[layer]),
                percent(d.first_renamed[layer]), percent(d.weights_moved[layer]), percent(d.shares_moved[layer]),
            ))  # fmt: skip
    x = [float(n) for n in range(trace.n_layers)]
    title = {pair: f"{names[pair[0]]} to {names[pair[1]]}" for pair in found}
    drawn = (
        ("Tokens with the same first choice", {title[p]: d.first for p, d in found.items()}),
        ("Experts in common", {title[p]: d.sets for p, d in found.items()}),
    )
    plots = tuple(Plot("lines", what, "layer", "%", x, *interval_series(shares)) for what, shares in drawn)
    note = (
        "Sets: |A ∩ B| / K. By chance: what the shares of the two would give if their choices were independent. "
        "Renamed: the best pairing of the experts of one with those of the other. Intervals count blocks of text."
    )
    facts = {"pairs": [{"from": names[a], "to": names[b], **_facts(d)} for (a, b), d in found.items()]}
    return Section("drift", "How far routing moved", _say(found, names), _COLUMNS, tuple(rows), plots, note, facts)


def _say(found: dict[tuple[int, int], Drift], names: Sequence[str]) -> str:
    (a, b), d = max(found.items(), key=lambda item: -float(np.nanmean(item[1].first.value)))
    first, sets, chance = d.first.value, d.sets.value, float(np.nanmean(d.first_by_chance))
    if np.nanmin(first) == 1 and np.nanmin(sets) == 1:
        moved = float(np.nanmean(d.weights_moved))
        return f"Every token meets the same experts in all of them, in the same order; {moved:.1%} of the weight moved."
    least = int(np.nanargmin(first))
    sentence = (
        f"From {names[a]} to {names[b]} {np.nanmean(first):.1%} of the first choices stayed ({chance:.1%} by chance) "
        f"and {np.nanmean(sets):.1%} of the experts; layer {least} moved most ({first[least]:.1%} stayed)."
    )
    if float(np.nanmean(d.first_renamed)) > float(np.nanmean(first)) + 0.1:
        sentence += (
            f" With its experts renamed {np.nanmean(d.first_renamed):.1%} would agree, so the two may not descend from "
            "each other."
        )
    return sentence


def _by_domain(found: dict[tuple[int, int], Drift], names: Sequence[str], trace: Trace) -> Section:
    rows: list[tuple[Cell, ...]] = []
    mean: dict[str, list[float]] = {name: [] for name in trace.domains}
    for (a, b), d in found.items():
        for name, value_L in d.by_domain.items():
            mean[name].append(_mean(value_L))
            rows.append((names[a], names[b], name, percent(_mean(value_L)), *_range(value_L)))
    overall = {name: _mean(np.array(values)) for name, values in mean.items()}
    known = {name: value for name, value in overall.items() if np.isfinite(value)}
    least, most = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
    sentence = (
        f"Routing moved most on {least} ({known[least]:.1%} of the experts in common) and least on {most} "
        f"({known[most]:.1%})."
    )
    if known[most] - known[least] < 0.0005:
        sentence = f"Routing moved alike on all domains: {known[least]:.1%} of the experts in common."
    facts = {"sets": {n: [None if np.isnan(v) else round(v, 5) for v in values] for n, values in mean.items()}}
    columns = ("from", "to", "domain", "sets in common %", "least of a layer %", "most of a layer %")
    return Section("drift-domains", "How far routing moved, by domain", sentence, columns, tuple(rows), (), "", facts)


def _saturation(found: Sequence[Drift], names: Sequence[str]) -> Section:
    last = names[len(found)]
    L = len(found[0].sets.value)
    rows: list[tuple[Cell, ...]] = [
        (names[i], percent(_mean(d.sets.value)), percent(_mean(d.first.value)), *_ends(d)) for i, d in enumerate(found)
    ]
    shown = [*names[: len(found)], last]
    by_layer = {f"layer {n}": [*(percent(d.sets.value[n]) for d in found), 100.0] for n in range(L)}
    chance = float(np.nanmean(found[-1].sets_by_chance))
    plots = (
        Plot("lines", f"Experts in common with {last}", "checkpoint", "%", shown, by_layer,
             references={"by chance": 100 * chance}),
    )  # fmt: skip
    slowest = int(np.nanargmin(found[0].sets.value))
    sentence = (
        f"{names[0]} already shares {_mean(found[0].sets.value):.1%} of its experts with {last} ({chance:.1%} by "
        f"chance), {names[len(found) - 1]} {_mean(found[-1].sets.value):.1%}; layer {slowest} settles last."
    )
    note = "Router saturation, the mean of |S_t ∩ S_last| / K (arXiv 2409.02060, section 5.1)."
    facts: dict[str, Any] = {
        "last": last, "checkpoints": list(names[: len(found)]), "by_chance": chance,
        "by_layer": [np.round(d.sets.value, 5).tolist() for d in found],
    }  # fmt: skip
    columns = ("checkpoint", "sets as in the last %", "first choice %", "slowest layer", "there %")
    return Section("saturation", "How settled routing is", sentence, columns, tuple(rows), plots, note, facts)


def _ends(d: Drift) -> tuple[Cell, Cell]:
    slowest = int(np.nanargmin(d.sets.value))
    return slowest, percent(d.sets.value[slowest])


def _facts(d: Drift) -> dict[str, Any]:
    named = {
        "first": d.first.value, "first_low": d.first.low, "first_high": d.first.high, "sets": d.sets.value,
        "sets_low": d.sets.low, "sets_high": d.sets.high, "first_by_chance": d.first_by_chance,
        "sets_by_chance": d.sets_by_chance, "first_renamed": d.first_renamed, "weights_moved": d.weights_moved,
        "shares_moved": d.shares_moved,
    }  # fmt: skip
    return {name: np.round(values, 5).tolist() for name, values in named.items()}


def _half(low: float, high: float) -> float | None:
    half = (float(high) - float(low)) / 2
    return percent(half) if np.isfinite(half) else None


def _mean(values: Any) -> float:
    kept = np.asarray(values)[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")


def _range(value_L: Any) -> tuple[Cell, Cell]:
    kept = value_L[np.isfinite(value_L)]
    return (percent(kept.min()), percent(kept.max())) if kept.size else (None, None)
