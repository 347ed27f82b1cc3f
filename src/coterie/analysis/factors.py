"""What the router goes by: how well each thing one may know about a token tells its first expert.

For each factor (the token itself, its kind, its domain, its place in the text, the expert of the token before, the
expert one layer below) the favourite expert of each value is learnt on one half of the blocks of text and tried on the
other half, then the other way round; the figure is the share of first choices that were right. So a factor with many
values has no advantage, and 'syntax or topics' is answered by a number: compare token and kind with domain.
Shapes: T tokens of a chunk, L layers, E experts, R values of a factor, times two halves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import percent
from coterie.analysis.positions import N_PLACES, place_of
from coterie.analysis.scan import Chunk, count
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.token_kinds import KINDS
from coterie.analysis.trace import Trace
from coterie.analysis.vocabulary import counted_tokens, kind_of_V

__all__ = ["FactorsReader", "cross_validated"]

_CELLS = 4_000_000
_NAMES = {
    "nothing": "nothing (the busiest expert)",
    "domain": "the domain",
    "position": "the place in the text",
    "previous": "the first expert of the token before",
    "below": "the first expert one layer below",
    "kind": "the kind of token",
    "kind_domain": "kind and domain",
    "token": "the token itself",
}


class FactorsReader:
    """Counts first choices by each factor, the halves of the text apart."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, E, M = trace, trace.n_experts, len(trace.domains)
        self.kind_V = kind_of_V(trace)
        self.place_V = counted_tokens(trace, max(_CELLS // max(trace.n_layers * E * 2, 1), 1))
        sizes = {"nothing": 1, "domain": M, "position": N_PLACES, "previous": E + 1, "below": E + 1}
        if self.kind_V is not None:
            sizes |= {"kind": len(KINDS), "kind_domain": len(KINDS) * M}
        sizes["token"] = int(self.place_V.max(initial=-1)) + 2
        sizes = {name: sizes[name] for name in _NAMES if name in sizes and (M > 1 or "domain" not in name)}
        if trace.n_layers < 2:
            del sizes["below"]
        self.counts = {n: np.zeros((trace.n_layers, 2 * size, E), dtype=np.int64) for n, size in sizes.items()}
        self._last_L1 = np.full((trace.n_layers, 1), -1, dtype=np.int16)

    def add(self, chunk: Chunk) -> None:
        first_LT = chunk.ids_KLT[0]
        for name, counts_LRE in self.counts.items():
            rows = self._rows(name, chunk, first_LT) * 2 + chunk.half_T
            counts_LRE += count(rows, first_LT, counts_LRE.shape[1], self.trace.n_experts)
        self._last_L1 = first_LT[:, -1:].copy()

    def _rows(self, name: str, chunk: Chunk, first_LT: NDArray[np.int16]) -> NDArray[np.int64]:
        """The value of a factor for each token, from 0; [T], or [L, T] where layers differ."""
        M = len(self.trace.domains)
        if name == "nothing":
            return np.zeros(len(chunk), dtype=np.int64)
        if name == "domain":
            return chunk.domain_T
        if name == "position":
            return place_of(chunk.positions_T)
        if name == "token":
            return self.place_V[chunk.tokens_T] + 1
        if name == "previous":
            left_LT = np.concatenate([self._last_L1, first_LT[:, :-1]], axis=1)
            return np.where(chunk.follows_T, left_LT, -1).astype(np.int64) + 1
        if name == "below":
            return np.concatenate([np.full_like(first_LT[:1], -1), first_LT[:-1]]).astype(np.int64) + 1
        assert self.kind_V is not None
        kind_T = self.kind_V[chunk.tokens_T]
        return kind_T if name == "kind" else kind_T * M + chunk.domain_T

    def sections(self) -> list[Section]:
        trace = self.trace
        right = {name: cross_validated(counts) for name, counts in self.counts.items()}
        rows: list[tuple[Cell, ...]] = [
            (_NAMES[name], percent(_mean(name, r)), *percent(r)) for name, r in right.items()
        ]  # fmt: skip
        plots = (
            Plot(
                "lines", "What tells the first expert of a token", "layer", "% right",
                [float(n) for n in range(trace.n_layers)], {_NAMES[n]: percent(r) for n, r in right.items()},
                references={"random": 100 / trace.n_experts},
            ),
        )  # fmt: skip
        note = (
            "The favourite expert of each value, learnt on one half of the blocks of text and tried on the other, both "
            "ways. Tokens seen fewer than 20 times count as one. Random is 1/E."
        )
        facts: dict[str, Any] = {"random": 1 / trace.n_experts} | {n: np.round(r, 5).tolist() for n, r in right.items()}
        columns = ("knowing", "mean %", *(f"layer {n} %" for n in range(trace.n_layers)))
        if trace.n_layers > 8:
            columns, rows = columns[:2], [row[:2] for row in rows]
        section = Section(
            "factors", "What the router goes by", _say(right, trace), columns, tuple(rows), plots, note, facts
        )
        return [section]


def cross_validated(counts_LRE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows 2·value + half. The share of first choices that the other half's favourite of the value names: [L].

    A value that the other half never met takes the favourite of all.
    """
    halves = [counts_LRE[:, 0::2], counts_LRE[:, 1::2]]
    right = np.zeros(len(counts_LRE))
    for learnt, tried in (halves, halves[::-1]):
        fallback_L1E = learnt.sum(1, keepdims=True)
        total = np.maximum(fallback_L1E.sum(-1, keepdims=True), 1)
        best_LR = (learnt + fallback_L1E / (2 * total)).argmax(-1)
        right += np.take_along_axis(tried, best_LR[..., None], -1).sum((1, 2))
    n_L = counts_LRE.sum((1, 2))
    return np.where(n_L > 0, right / np.maximum(n_L, 1), np.nan)


def _mean(name: str, right_L: NDArray[np.float64]) -> float:
    """Over the layers, without the first where nothing lies below it."""
    kept = right_L[1:] if name == "below" else right_L
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if kept.size else float("nan")


def _say(right: dict[str, NDArray[np.float64]], trace: Trace) -> str:
    mean = {name: _mean(name, r) for name, r in right.items()}
    said = [f"the token itself tells the first expert of {mean['token']:.0%} of the tokens"]
    if "kind" in mean:
        said.append(f"its kind of {mean['kind']:.0%}")
    if "domain" in mean:
        said.append(f"its domain of {mean['domain']:.0%}")
    said.append(f"the expert of the token before of {mean['previous']:.0%}")
    token, domain = mean["token"] - mean["nothing"], mean.get("domain", 0) - mean["nothing"]
    verdict = ""
    if "domain" in mean and token > 0.02:
        verdict = (
            " Experts go by what the token is rather than by its domain."
            if token > 2 * max(domain, 0)
            else " The domain matters about as much as the token." if domain < 2 * token
            else " The domain matters more than the token."
        )  # fmt: skip
    return (
        f"On text it was not learnt on, {', '.join(said)} (always naming the busiest: {mean['nothing']:.0%}).{verdict}"
    )
