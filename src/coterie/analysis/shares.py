"""Which share of the tokens each expert reads, by layer, domain and choice, against the fair share; do domains differ?

A share is of the slots in use: with K experts a token each of E experts has 1/E of them where all is even, as in
figure 7 of the Mixtral paper. Intervals and the test count blocks of text, not tokens (`blocks.py`).
Shapes: L layers, B blocks, E experts, M domains, C choices (the first, the second, the others together).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import drawn_domains, interval_series, percent
from coterie.analysis.intervals import Difference, Shares, differences, distance, ratio_interval
from coterie.analysis.scan import Chunk, count, shown_layers
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["CHOICES", "ShareReader", "n_choices"]

CHOICES = ("first", "second", "later")
_WIDE, _RARE = 16, 0.05  # experts that have a column each; a test's usual threshold


def n_choices(trace: Trace) -> int:
    """How many places of a choice are counted apart."""
    return min(int(trace.top_k), len(CHOICES))


class ShareReader:
    """Counts experts by block; everything about shares follows from that."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, self.blocks = trace, blocks
        self.counts_CLBE = np.zeros((n_choices(trace), trace.n_layers, len(blocks), trace.n_experts), dtype=np.int64)

    def add(self, chunk: Chunk) -> None:
        for slot, ids_LT in enumerate(chunk.ids_KLT):
            choice = min(slot, len(self.counts_CLBE) - 1)
            self.counts_CLBE[choice] += count(chunk.block_T, ids_LT, len(self.blocks), self.trace.n_experts)

    def sections(self) -> list[Section]:
        return [self._shares(), *([self._choices()] if len(self.counts_CLBE) > 1 else []), self._domains()]

    def of(self, counts_LBE: NDArray[np.int64], domain: int | None = None) -> Shares:
        """Shares [L, E] with intervals, of all or of a domain."""
        mine = self.blocks.of_domain(domain)
        counts_BLE = counts_LBE[:, mine].transpose(1, 0, 2)
        return ratio_interval(counts_BLE, counts_BLE.sum(-1, keepdims=True), self.blocks.domain_B[mine])

    def _by_name(self, counts_LBE: NDArray[np.int64]) -> dict[str, Shares]:
        """Shares of all text, and of the domains where there are more than one."""
        domains = self.trace.domains if len(self.trace.domains) > 1 else []
        return {"all": self.of(counts_LBE)} | {name: self.of(counts_LBE, d) for d, name in enumerate(domains)}

    def _shares(self) -> Section:
        trace = self.trace
        by_name = self._by_name(self.counts_CLBE.sum(0))
        rows = [(layer, name, *_cells(s, layer)) for layer, name, s in self._listed(by_name)]
        columns = ("layer", "domain", *_columns(trace.n_experts))
        named = drawn_domains(by_name, trace)
        plots = tuple(_bars(f"Layer {n}: share of the slots by expert", named, n) for n in _drawn(trace))
        facts = {"fair": 1 / trace.n_experts, "by_domain": {name: _as_facts(s) for name, s in by_name.items()}}
        return Section(
            "shares", "Share of tokens by expert, layer and domain", _say_shares(by_name["all"], trace), columns,
            tuple(rows), plots, self._method(), facts,
        )  # fmt: skip

    def _listed(self, by_name: dict[str, Shares]) -> list[tuple[int, str, Shares]]:
        """The rows of a table: every layer of all text, the domains in the layers that are shown."""
        shown = shown_layers(self.trace.n_layers)
        return [
            (layer, name, shares) for layer in range(self.trace.n_layers) for name, shares in by_name.items()
            if name == "all" or layer in shown
        ]  # fmt: skip

    def _choices(self) -> Section:
        trace = self.trace
        found = {CHOICES[c]: self._by_name(counts) for c, counts in enumerate(self.counts_CLBE)}
        of_all = {choice: by_name["all"] for choice, by_name in found.items()}
        rows = [
            (layer, name, choice, *_cells(found[choice][name], layer))
            for layer, name, _ in self._listed(found["first"]) for choice in found
        ]  # fmt: skip
        apart_L = distance(of_all["first"].value, of_all["second"].value)
        drawn = _drawn(trace)[len(_drawn(trace)) // 2]
        plots = (_bars(f"Layer {drawn}: share by expert, first and second choice", of_all, drawn),)
        facts = {
            "distance_by_layer": np.round(apart_L, 5).tolist(), **{c: _as_facts(s) for c, s in of_all.items()},
            "by_domain": {
                name: {choice: _as_facts(found[choice][name]) for choice in found} for name in found["first"]
            },
        }  # fmt: skip
        columns = ("layer", "domain", "choice", *_columns(trace.n_experts))
        sentence = _say_choices(of_all["first"], of_all["second"])
        return Section(
            "choices", "The first choice and the second", sentence, columns, tuple(rows), plots, self._method(), facts
        )

    def _domains(self) -> Section:
        trace, blocks, M = self.trace, self.blocks, len(self.trace.domains)
        named = {"all": self.counts_CLBE.sum(0)} | (
            {CHOICES[c]: counts for c, counts in enumerate(self.counts_CLBE)} if len(self.counts_CLBE) > 1 else {}
        )
        tests = {n: differences(c.transpose(1, 0, 2), blocks.domain_B, M) for n, c in named.items()}
        rows: list[tuple[Cell, ...]] = [
            (choice, layer, *_test_cells(test, layer)) for choice, test in tests.items()
            for layer in [*range(trace.n_layers), None]
        ]  # fmt: skip
        columns = ("choice", "layer", "moved %", "by chance %", "Cramér's V", "p")
        between = self._between(named["all"])
        heat = {n: percent(row) for n, row in zip(trace.domains, between, strict=True)}
        title = "How far domains are from each other (mean of the layers)"
        plots = (Plot("heatmap", title, "domain", "%", list(trace.domains), heat),) if M > 1 else ()
        note = (
            f"{tests['all'].n_permutations} permutations of the domains of {len(blocks)} blocks; 'moved' is the total "
            f"variation distance of a domain from all text, weighted by tokens. {self._method()}"
        )
        apart = {
            n: dict(zip(trace.domains, np.round(row, 5).tolist(), strict=True))
            for n, row in zip(trace.domains, between, strict=True)
        }
        facts = {"n_blocks": len(blocks), "between_domains": apart} | {n: _test_facts(t) for n, t in tests.items()}
        return Section(
            "domains", "Do domains differ?", _say_domains(tests["all"], trace, between), columns, tuple(rows), plots,
            note, facts,
        )  # fmt: skip

    def _between(self, counts_LBE: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean distance over layers of each pair of domains [M, M]."""
        member_MB = self.blocks.domain_B == np.arange(len(self.trace.domains))[:, None]
        counts_LME = np.einsum("mb,lbe->lme", member_MB.astype(np.float64), counts_LBE.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            share_LME = counts_LME / counts_LME.sum(-1, keepdims=True)
        found: NDArray[np.float64] = distance(share_LME[:, :, None], share_LME[:, None]).mean(0)
        return found

    def _method(self) -> str:
        blocks = self.blocks
        unit = f"{len(blocks)} pieces of {blocks.n_documents} documents, which may be alike: intervals are then too "
        if blocks.is_cut:
            return f"95 % intervals count {unit}narrow."
        return f"95 % intervals count {len(blocks)} blocks of {blocks.n_documents} documents, not tokens."


def _columns(E: int) -> tuple[str, ...]:
    each = tuple(f"expert {e} %" for e in range(E)) if E <= _WIDE else ()
    return (*each, "most %", "its expert", "low", "high", "least %", "at most ±")


def _cells(shares: Shares, layer: int) -> tuple[Cell, ...]:
    value = shares.value[layer]
    each = tuple(percent(value)) if len(value) <= _WIDE else ()
    if np.isnan(value).any():
        return (*each, None, None, None, None, None, None)
    top, half = int(value.argmax()), (shares.high[layer] - shares.low[layer]) / 2
    ends = percent(shares.low[layer, top]), percent(shares.high[layer, top])
    return (*each, percent(value[top]), top, *ends, percent(value.min()), percent(half.max()))


def _drawn(trace: Trace) -> list[int]:
    return shown_layers(trace.n_layers, most=3)


def _bars(title: str, named: dict[str, Shares], layer: int) -> Plot:
    E = next(iter(named.values())).value.shape[1]
    value, low, high = interval_series(named, layer)
    names = [str(e) for e in range(E)]
    return Plot("bars", title, "expert", "%", names, value, low, high, {"fair share": 100 / E})


def _as_facts(shares: Shares) -> dict[str, Any]:
    return {part: np.round(getattr(shares, part), 5).tolist() for part in ("value", "low", "high")} | {
        "design_effect": float(np.round(np.nanmean(shares.design_effect), 2))
        if np.isfinite(shares.design_effect).any()
        else None
    }


def _say_shares(shares: Shares, trace: Trace) -> str:
    value, E = np.nan_to_num(shares.value), trace.n_experts
    layer, expert = np.unravel_index(int(value.argmax()), value.shape)
    out = int(((shares.low > 1 / E) | (shares.high < 1 / E)).sum())
    idle = int((value == 0).sum())
    return (
        f"The busiest expert of a layer reads {value.max(1).mean():.1%} of the slots where {1 / E:.1%} would be fair, "
        f"at most {value.max():.1%} (expert {expert} of layer {layer}); {out} of {value.size} shares differ from the "
        f"fair one by more than their interval" + (f", and {idle} experts are idle." if idle else ".")
    )


def _say_choices(first: Shares, second: Shares) -> str:
    gap = np.nan_to_num(np.abs(first.value - second.value))
    n = int(((first.low > second.high) | (first.high < second.low)).sum())
    layer, expert = np.unravel_index(int(gap.argmax()), gap.shape)
    most = (
        f"expert {expert} of layer {layer} is {first.value[layer, expert]:.1%} of the first choices and "
        f"{second.value[layer, expert]:.1%} of the second"
    )
    if n == 0:
        return f"First and second choices are spread alike, within their intervals; the most apart, {most}."
    moved = float(np.nanmean(distance(first.value, second.value)))
    return (
        f"First and second choices are spread differently: {moved:.1%} of them would have to change experts, and the "
        f"intervals of {n} of {gap.size} experts do not meet; the most apart, {most}."
    )


def _test_cells(test: Difference, layer: int | None) -> tuple[Cell, ...]:
    if layer is None:
        found, chance = percent(test.found_G.mean()), percent(test.by_chance_G.mean())
        return (found, chance, float(np.round(test.cramers_v_G.mean(), 4)), float(test.p_all))
    return (
        percent(test.found_G[layer]), percent(test.by_chance_G[layer]), float(np.round(test.cramers_v_G[layer], 4)),
        float(test.p_G[layer]),
    )  # fmt: skip


def _test_facts(test: Difference) -> dict[str, Any]:
    return {
        "moved": np.round(test.found_G, 5).tolist(),
        "by_chance": np.round(test.by_chance_G, 5).tolist(),
        "cramers_v": np.round(test.cramers_v_G, 5).tolist(),
        "p": test.p_G.tolist(),
        "p_all": test.p_all,
        "n_permutations": test.n_permutations,
    }


def _say_domains(test: Difference, trace: Trace, between: NDArray[np.float64]) -> str:
    if math.isnan(test.p_all):
        return "The text has a single domain, so there is nothing to compare."
    n = int((test.p_G < _RARE).sum())
    moved, chance = test.found_G.mean(), test.by_chance_G.mean()
    figures = f"{moved:.1%} of a domain's slots would have to move to look like all text, {chance:.1%} by chance"
    if test.p_all >= _RARE:
        return f"Domains do not differ by more than chance: {figures} (p = {test.p_all:.3f})."
    far = int(np.nanargmax(np.nansum(between, axis=1)))
    layer = int(np.nanargmax(test.found_G))
    return (
        f"Domains differ, in {n} of {trace.n_layers} layers (p = {test.p_all:.3f} for all): {figures}; most in layer "
        f"{layer} ({test.found_G[layer]:.1%}). The domain farthest from the others is {trace.domains[far]}."
    )
