"""Consecutive repeats: how often neighbouring tokens meet the same expert (table 5 of the Mixtral paper, both columns).

`first`: both tokens have the same first choice. `either`: they have at least one expert in common, whatever its place.
A pair is two tokens of one document and window, one right after the other. Two baselines stand beside each figure.
Random: each token chooses K of E experts uniformly, 1/E and 1 - C(E-K, K)/C(E, K): 12.5 % and 46.43 % for 8 and 2.
Given the shares: two tokens of one domain drawn at random, so what unequal use of experts alone would give; the first
column is Σ share², the second is measured on tokens far apart from each other. What is above it is local.
Shapes: T tokens of a chunk, L layers, B blocks, E experts, K slots, W words of 64 experts, S sampled tokens.
"""

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks, blocks_of
from coterie.analysis.figures import drawn_domains, interval_series, percent
from coterie.analysis.intervals import Shares, ratio_interval
from coterie.analysis.paper_routing import PAPER_LAYERS, PAPER_SHAPE, TABLE_5, paper_means
from coterie.analysis.scan import Chunk, chunks, count, shown_layers
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["Repeats", "RepeatsReader", "measure_repeats", "random_repeats"]

_SAMPLE, _SHIFTS = 65_536, 32  # tokens kept of all domains, and how often each is paired with another


def random_repeats(n_experts: int, top_k: int) -> tuple[float, float]:
    """Uniform choices: the chance of the same first choice, and of an expert in common.

    8 experts, 2 of them: 1/8 and 1 - (6·5)/(8·7) = 0.4643.
    """
    return 1 / n_experts, _common_of_random(n_experts, top_k, top_k)


@dataclass(frozen=True)
class Repeats:
    """Of a domain or of all text, by layer: shares of the pairs, and what the shares of experts alone would give."""

    first: Shares
    either: Shares
    first_given_shares: NDArray[np.float64]
    either_given_shares: NDArray[np.float64]
    n_pairs: int
    uniform: tuple[float, float]  # both columns, were choices uniform: each token takes as many experts as tokens do


class RepeatsReader:
    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, self.blocks = trace, blocks
        shape = (trace.n_layers, len(blocks))
        self.same_LB, self.common_LB, self.pairs_LB = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        self.first_LBE = np.zeros((*shape, trace.n_experts), dtype=np.int64)
        self._words = _words(trace.n_experts)
        self._last: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._kept: list[list[NDArray[Any]]] = [[] for _ in trace.domains]
        sizes = np.bincount(np.asarray(trace.domain_of_T), minlength=len(trace.domains))
        self._every = np.maximum(sizes * len(trace.domains) // _SAMPLE, 1)
        self._seen = np.zeros(len(trace.domains), dtype=np.int64)
        self._used = np.zeros(trace.top_k + 1, dtype=np.int64)  # places by how many slots are in use

    def add(self, chunk: Chunk) -> None:
        first_LT = chunk.ids_KLT[0]
        mask_WLT = _masks(self._words, chunk.ids_KLT)
        self.first_LBE += count(chunk.block_T, first_LT, len(self.blocks), self.trace.n_experts)
        self._used += np.bincount((chunk.ids_KLT >= 0).sum(0).ravel(), minlength=len(self._used))
        self._keep(chunk, mask_WLT)
        before_first, before_mask = self._last or (first_LT[:, :1], mask_WLT[..., :1])
        left_first_LT = np.concatenate([before_first, first_LT[:, :-1]], axis=1)
        left_mask_WLT = np.concatenate([before_mask, mask_WLT[..., :-1]], axis=2)
        is_pair_LT = (first_LT >= 0) & (left_first_LT >= 0) & chunk.follows_T
        same_LT = is_pair_LT & (first_LT == left_first_LT)
        common_LT = is_pair_LT & ((mask_WLT & left_mask_WLT) != 0).any(0)
        for total_LB, found_LT in ((self.pairs_LB, is_pair_LT), (self.same_LB, same_LT), (self.common_LB, common_LT)):
            for layer, found_T in enumerate(found_LT):
                total_LB[layer] += np.bincount(chunk.block_T[found_T], minlength=len(self.blocks))
        self._last = first_LT[:, -1:].copy(), mask_WLT[..., -1:].copy()

    def _keep(self, chunk: Chunk, mask_WLT: NDArray[Any]) -> None:
        """Every n-th token of each domain."""
        for domain in np.unique(chunk.domain_T):
            mine = np.flatnonzero(chunk.domain_T == domain)
            every, seen = int(self._every[domain]), int(self._seen[domain])
            self._kept[domain].append(mask_WLT[..., mine[-seen % every :: every]])
            self._seen[domain] += len(mine)

    def of(self, domain: int | None = None) -> Repeats:
        """Of a domain, or of all text; 'given the shares' of all text is the mean over domains, by their pairs."""
        mine = self.blocks.of_domain(domain)
        strata_B, pairs_BL = self.blocks.domain_B[mine], self.pairs_LB[:, mine].T
        given = [self._given_shares(d) for d in range(len(self.trace.domains)) if domain in (None, d)]
        weight_DL = np.array([n for _, _, n in given])
        return Repeats(
            ratio_interval(self.same_LB[:, mine].T, pairs_BL, strata_B),
            ratio_interval(self.common_LB[:, mine].T, pairs_BL, strata_B),
            _mean(np.array([first for first, _, _ in given]), weight_DL),
            _mean(np.array([either for _, either, _ in given]), weight_DL),
            int(pairs_BL.max(1).sum()) if pairs_BL.size else 0,
            self._random(),
        )

    def _given_shares(self, domain: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """What the shares of a domain alone would give in either column, and its pairs; each [L]."""
        mine = self.blocks.of_domain(domain)
        first_LE = self.first_LBE[:, mine].sum(1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            share_LE = first_LE / first_LE.sum(-1, keepdims=True)
        either_L = _common_by_chance(self._kept[domain], self.trace.n_layers)
        return np.square(share_LE).sum(-1), either_L, self.pairs_LB[:, mine].sum(1)

    def _random(self) -> tuple[float, float]:
        """`random_repeats`, each token choosing as many experts as tokens do, which differ where slots are unused."""
        E, n = self.trace.n_experts, max(int(self._used[1:].sum()), 1)
        sizes = [(k, int(self._used[k]) / n) for k in np.flatnonzero(self._used[1:]) + 1]
        return 1 / E, sum(p * q * _common_of_random(E, int(a), int(b)) for a, p in sizes for b, q in sizes)

    def sections(self) -> list[Section]:
        trace = self.trace
        found = {"all": self.of()}
        if len(trace.domains) > 1:
            found |= {name: self.of(d) for d, name in enumerate(trace.domains)}
        random = found["all"].uniform
        shown = shown_layers(trace.n_layers)
        rows = [_cells(n, layer, r, random) for n, r in found.items()
                for layer in (range(trace.n_layers) if n == "all" else shown)]  # fmt: skip
        of_paper = random_repeats(*PAPER_SHAPE)
        rows += [
            (f"Mixtral: {name}", layer, row.first[i], None, None, percent(of_paper[0]), None,
             row.either[i], None, None, percent(of_paper[1]), None)
            for name, row in TABLE_5.items() for i, layer in enumerate(PAPER_LAYERS)
        ]  # fmt: skip
        note = (
            "Table 5 of arXiv 2401.04088 and its own figures below ours (other text, layers 0, 15 and 31 of 32). "
            "'random': uniform choices; 'given shares': two tokens of the domain far apart. Intervals count blocks."
        )
        section = Section(
            "repeats",
            "Consecutive tokens with the same expert",
            _say(found["all"], random, trace),
            _COLUMNS,
            tuple(rows),
            _plots(drawn_domains(found, trace), random, trace.n_layers),
            note,
            _facts(found, random, shown),
        )
        return [section]


def measure_repeats(trace: Trace) -> dict[str, Repeats]:
    """Repeats of all text (`all`) and of each domain, for who needs nothing else of a trace."""
    blocks = blocks_of(trace)
    reader = RepeatsReader(trace, blocks)
    for chunk in chunks(trace, blocks):
        reader.add(chunk)
    return {"all": reader.of()} | {name: reader.of(d) for d, name in enumerate(trace.domains)}


def _mean(values_DL: NDArray[np.float64], weight_DL: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over D by weight, of what is there; NaN where nothing is."""
    weight_DL = np.where(np.isnan(values_DL), 0, weight_DL)
    total_L = weight_DL.sum(0)
    return np.where(total_L > 0, (np.nan_to_num(values_DL) * weight_DL).sum(0) / np.maximum(total_L, 1), np.nan)


def _common_of_random(n_experts: int, a: int, b: int) -> float:
    """The chance that `a` and `b` experts drawn from all have one in common."""
    return 1 - comb(n_experts - a, b) / comb(n_experts, b)


def _words(n_experts: int) -> NDArray[Any]:
    """[W, E + 1]: a bit for each expert after a zero for the unused slot -1; 8 bits where they do."""
    kind = np.uint8 if n_experts <= 8 else np.uint64
    words = np.zeros((-(-n_experts // 64), n_experts + 1), dtype=kind)
    for expert in range(n_experts):
        words[expert // 64, expert + 1] = 1 << expert % 64
    return words


def _masks(words: NDArray[Any], ids_KLT: NDArray[np.int16]) -> NDArray[Any]:
    """The experts of each token as bits [W, L, T]."""
    masks = np.stack([word.take(ids_KLT[0] + 1) for word in words])
    for ids_LT in ids_KLT[1:]:
        for mask_LT, word in zip(masks, words, strict=True):
            mask_LT |= word.take(ids_LT + 1)
    return masks


def _common_by_chance(kept: list[NDArray[Any]], n_layers: int) -> NDArray[np.float64]:
    """How often two of the kept tokens, at many distances from each other, have an expert in common: [L]."""
    mask_WLS = np.concatenate(kept, axis=2) if kept else np.zeros((1, n_layers, 0), dtype=np.uint8)
    S = mask_WLS.shape[2]
    if S < 2:
        return np.full(n_layers, np.nan)
    shifts = np.unique(np.linspace(1, S - 1, _SHIFTS + 2).astype(int)[1:-1]) if S > 3 else np.array([1])
    used_LS = (mask_WLS != 0).any(0)
    hits, pairs = np.zeros(n_layers), np.zeros(n_layers)
    for shift in shifts:
        hits += ((mask_WLS & np.roll(mask_WLS, shift, axis=2)) != 0).any(0).sum(1)
        pairs += (used_LS & np.roll(used_LS, shift, axis=1)).sum(1)
    return np.where(pairs > 0, hits / np.maximum(pairs, 1), np.nan)


_COLUMNS = (
    "domain", "layer", "same first choice %", "low", "high", "random", "given shares",
    "first or second in common %", "low", "high", "random", "given shares",
)  # fmt: skip


def _cells(name: str, layer: int, found: Repeats, random: tuple[float, float]) -> tuple[Cell, ...]:
    cells: list[Cell] = [name, layer]
    pairs = ((found.first, random[0], found.first_given_shares), (found.either, random[1], found.either_given_shares))
    for shares, chance, given in pairs:
        cells += [percent(shares.value[layer]), percent(shares.low[layer]), percent(shares.high[layer])]
        cells += [percent(chance), percent(given[layer])]
    return tuple(cells)


def _plots(named: dict[str, Repeats], random: tuple[float, float], n_layers: int) -> tuple[Plot, ...]:
    layers = [float(n) for n in range(n_layers)]
    drawn = (
        ("The same first choice as the token before", {n: r.first for n, r in named.items()}, random[0]),
        ("An expert in common with the token before", {n: r.either for n, r in named.items()}, random[1]),
    )
    return tuple(
        Plot("lines", title, "layer", "% of pairs", layers, *interval_series(shares), {"random": percent(chance)})
        for title, shares, chance in drawn
    )


def _facts(found: dict[str, Repeats], random: tuple[float, float], shown: list[int]) -> dict[str, Any]:
    def of(r: Repeats) -> dict[str, Any]:
        shares = {
            f"{name}{'' if end == 'value' else '_' + end}": np.round(getattr(s, end), 5).tolist()
            for name, s in (("first", r.first), ("either", r.either)) for end in ("value", "low", "high")
        }  # fmt: skip
        given = {
            "first_given_shares": np.round(r.first_given_shares, 5).tolist(),
            "either_given_shares": np.round(r.either_given_shares, 5).tolist(),
        }
        return {**shares, **given, "n_pairs": r.n_pairs}

    return {
        "random": {"first": random[0], "either": random[1]},
        "shown_layers": shown,
        "by_domain": {n: of(r) for n, r in found.items()},
        "paper": {n: {"first": row.first, "either": row.either} for n, row in TABLE_5.items()},
        "paper_mean": paper_means()._asdict(),
    }


def _say(found: Repeats, random: tuple[float, float], trace: Trace) -> str:
    first, either = found.first.value, found.either.value
    if found.n_pairs == 0 or not np.isfinite(first).any():
        return "No token follows another in the same document, so there are no repeats to count."
    layer, paper = int(np.nanargmax(first)), paper_means()
    return (
        f"Neighbouring tokens have the same first choice in {np.nanmin(first):.1%} to {np.nanmax(first):.1%} of the "
        f"pairs, most in layer {layer} (random: {random[0]:.1%}; the shares within each "
        f"domain alone: {found.first_given_shares[layer]:.1%}), and an expert in common in {np.nanmin(either):.1%} to "
        f"{np.nanmax(either):.1%} (random: {random[1]:.1%}). Mixtral's means are {paper.first[0]:.1f}, "
        f"{paper.first[1]:.1f} and {paper.first[2]:.1f} % at its first, middle and last layer, and "
        f"{paper.either[0]:.1f}, {paper.either[1]:.1f} and {paper.either[2]:.1f} %."
    )
