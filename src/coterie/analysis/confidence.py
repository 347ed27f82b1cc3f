"""How sure the router is: the margin and the entropy of its choices.

From the weights, which every trace has: the margin is the first weight less the second, the entropy that of the weights
of the K kept experts over log K (1: all alike, 0: one has it all). From the logits, where they were recorded: the
entropy over all E experts over log E, how much of the softmax the K kept hold, and how near the best expert left out
came to the last one kept, which is what rounding may turn over. Weights are 8 bits in a trace: 0.004 is their step.
Shapes: T tokens of a chunk, L layers, B blocks, K slots, E experts, H parts of a histogram.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import drawn_domains, percent
from coterie.analysis.intervals import Shares, ratio_interval
from coterie.analysis.scan import Chunk, shown_layers
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["ConfidenceReader"]

_PARTS, _CLOSE = 20, 0.1  # of the histogram of the first weight; logits that are near each other
_MEASURES = {
    "margin": "first weight - second",
    "entropy": "entropy of the weights / log K",
    "full_entropy": "entropy of the router / log E",
    "kept": "probability kept",
    "close": "nearly chose another",
}


class ConfidenceReader:
    """Sums of the measures by block, and a histogram of the first weight."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, self.blocks = trace, blocks
        names = ["margin", "entropy"] if trace.top_k > 1 else []
        if len(trace) and trace.logits(0, 1) is not None:
            names += ["full_entropy", "kept", "close"] if trace.n_experts > trace.top_k else ["full_entropy"]
        self.sums_LB = {name: np.zeros((trace.n_layers, len(blocks))) for name in names}
        self.tokens_LB = np.zeros((trace.n_layers, len(blocks)), dtype=np.int64)
        self.histogram_LH = np.zeros((trace.n_layers, _PARTS), dtype=np.int64)

    def add(self, chunk: Chunk) -> None:
        if not self.sums_LB:
            return
        is_used_LT = chunk.ids_KLT[0] >= 0
        found = self._of_weights(chunk) | self._of_logits(chunk, is_used_LT)
        for layer, is_used_T in enumerate(is_used_LT):
            block_T = chunk.block_T[is_used_T]
            self.tokens_LB[layer] += np.bincount(block_T, minlength=len(self.blocks))
            for name, values_LT in found.items():
                sums = np.bincount(block_T, values_LT[layer][is_used_T], minlength=len(self.blocks))
                self.sums_LB[name][layer] += sums

    def _of_weights(self, chunk: Chunk) -> dict[str, NDArray[Any]]:
        if self.trace.top_k < 2:
            return {}
        weights_KLT = chunk.weights_KLT
        for layer, first_T in enumerate(weights_KLT[0]):
            part_T = np.clip((first_T * _PARTS).astype(np.int64), 0, _PARTS - 1)
            self.histogram_LH[layer] += np.bincount(part_T[chunk.ids_KLT[0, layer] >= 0], minlength=_PARTS)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_LT = -np.where(weights_KLT > 0, weights_KLT * np.log(weights_KLT), 0).sum(0)
        return {"margin": weights_KLT[0] - weights_KLT[1], "entropy": entropy_LT / np.log(self.trace.top_k)}

    def _of_logits(self, chunk: Chunk, is_used_LT: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Layer by layer: with many experts the logits of a chunk are large."""
        names = [name for name in ("full_entropy", "kept", "close") if name in self.sums_LB]
        found: dict[str, NDArray[Any]] = {name: np.zeros(is_used_LT.shape) for name in names}
        for layer, is_used_T in enumerate(is_used_LT):
            if not names:
                break
            logits_TE = self.trace.logits(chunk.start, chunk.stop, layer)
            assert logits_TE is not None
            logits_TE = np.where(is_used_T[:, None], logits_TE, 0).astype(np.float32)
            for name, values_T in _of_layer(logits_TE, chunk.ids_KLT[:, layer]).items():
                found[name][layer] = values_T
        return found

    def of(self, name: str, domain: int | None = None) -> Shares:
        """A measure by layer, of all text or of a domain."""
        mine = self.blocks.of_domain(domain)
        return ratio_interval(self.sums_LB[name][:, mine].T, self.tokens_LB[:, mine].T, self.blocks.domain_B[mine])

    def sections(self) -> list[Section]:
        trace = self.trace
        if not self.sums_LB or not self.tokens_LB.sum():
            return []
        domains: dict[str, int | None] = {"all": None}
        if len(trace.domains) > 1:
            domains |= {name: d for d, name in enumerate(trace.domains)}
        found = {name: {m: self.of(m, d) for m in self.sums_LB} for name, d in domains.items()}
        rows: list[tuple[Cell, ...]] = []
        for name, measures in found.items():
            for layer in range(trace.n_layers) if name == "all" else shown_layers(trace.n_layers):
                cells = [(round(float(s.value[layer]), 4), _half(s, layer)) for s in measures.values()]
                rows.append((name, layer, *(cell for pair in cells for cell in pair)))
        columns = ("domain", "layer", *(c for m in self.sums_LB for c in (_MEASURES[m], "±")))
        note = (
            "Margin and entropy of the kept weights (their sum made 1); 'nearly chose another': the last expert kept "
            f"and the best one left out are within {_CLOSE} in their logits. Intervals count blocks."
        )
        facts = {n: {m: np.round(s.value, 5).tolist() for m, s in ms.items()} for n, ms in found.items()}
        section = Section(
            "confidence",
            "How sure the router is",
            self._say(found["all"]),
            columns,
            tuple(rows),
            self._plots(found),
            note,
            {"by_domain": facts, "first_weight": self.histogram_LH.tolist()},
        )
        return [section]

    def _plots(self, found: dict[str, dict[str, Shares]]) -> tuple[Plot, ...]:
        named = drawn_domains(found, self.trace)
        lines = tuple(
            Plot(
                "lines", _MEASURES[m][:1].upper() + _MEASURES[m][1:], "layer", "",
                [float(n) for n in range(self.trace.n_layers)],
                *({n: getattr(ms[m], end).tolist() for n, ms in named.items()} for end in ("value", "low", "high")),
            ) for m in self.sums_LB
        )  # fmt: skip
        if self.trace.top_k < 2:
            return lines
        share_LH = self.histogram_LH / np.maximum(self.histogram_LH.sum(1, keepdims=True), 1)
        drawn = shown_layers(self.trace.n_layers, most=3)
        first = (_PARTS // self.trace.top_k) if self.trace.top_k == 2 else 0  # of two, the first has half at least
        histogram = Plot(
            "bars", "The weight of the first choice", "weight", "% of tokens",
            [f"{h / _PARTS:.2f}" for h in range(first, _PARTS)],
            {f"layer {n}": percent(share_LH[n, first:]) for n in drawn},
        )  # fmt: skip
        return (*lines, histogram)

    def _say(self, found: dict[str, Shares]) -> str:
        parts = []
        if "margin" in found:
            margin = found["margin"].value
            sure, unsure = int(np.nanargmax(margin)), int(np.nanargmin(margin))
            first = f"The first choice has {np.nanmean(margin):.2f} more weight than the second on average"
            parts.append(
                f"{first}, most in layer {sure} ({margin[sure]:.2f}) and least in layer {unsure} ({margin[unsure]:.2f})"
            )
        if "full_entropy" in found:
            said = (
                f"the entropy over all {self.trace.n_experts} experts is {np.nanmean(found['full_entropy'].value):.2f}"
            )
            parts.append(said + " of the largest possible")
        if "close" in found:
            parts.append(f"{np.nanmean(found['close'].value):.1%} of the tokens nearly chose another expert")
        return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."


def _of_layer(logits_TE: NDArray[np.float32], ids_KT: NDArray[np.int16]) -> dict[str, NDArray[Any]]:
    """Entropy over log E, probability of the kept, and whether the next one was near; the latter two where K < E."""
    K, E = len(ids_KT), logits_TE.shape[1]
    logits_TE = logits_TE - logits_TE.max(-1, keepdims=True)
    p_TE = np.exp(logits_TE)
    p_TE /= p_TE.sum(-1, keepdims=True)
    entropy_T = -(p_TE * np.log(np.maximum(p_TE, 1e-30))).sum(-1) / np.log(max(E, 2))
    if K >= E:
        return {"full_entropy": entropy_T}
    kept_T = (np.take_along_axis(p_TE, np.maximum(ids_KT, 0).T.astype(np.intp), -1) * (ids_KT.T >= 0)).sum(-1)
    ordered_TE = np.partition(logits_TE, (E - K - 1, E - K), axis=-1)
    close_T = ordered_TE[:, E - K] - ordered_TE[:, E - K - 1] < _CLOSE
    return {"full_entropy": entropy_T, "kept": kept_T, "close": close_T}


def _half(shares: Shares, layer: int) -> float | None:
    half = float(shares.high[layer] - shares.low[layer]) / 2
    return round(half, 4) if np.isfinite(half) else None
