"""Which experts read together: N_ij / N_i, of the tokens that expert i reads the share that j reads too (OLMoE, 5.3).

With uniform choices it is (K - 1) / (E - 1) for all pairs; where slots are unused, K is the mean in use, rounded.
Unequal shares alone already make some pairs common, so each pair is also compared with N_i · N_j · c, the products of
how often each is chosen, scaled to the number of pairs; the ratio of the two is the lift.
Shapes: T tokens of a chunk, L layers, K slots, E experts.
"""

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks
from coterie.analysis.figures import percent
from coterie.analysis.scan import Chunk, shown_layers
from coterie.analysis.section import Cell, Plot, Section
from coterie.analysis.trace import Trace

__all__ = ["CoactivationReader"]

_PAIRS, _WIDE = 200_000_000, 32  # pairs counted at most (beyond, every n-th token); experts that are drawn


class CoactivationReader:
    """Counts pairs of experts."""

    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, E, K = trace, trace.n_experts, trace.top_k
        self.pairs_LEE = np.zeros((trace.n_layers, E, E), dtype=np.int64)
        self.counts_LE = np.zeros((trace.n_layers, E), dtype=np.int64)
        self._n_places = 0  # tokens that were counted, in each layer
        self._every = 1 + len(trace) * trace.n_layers * K * (K - 1) // 2 // _PAIRS

    def add(self, chunk: Chunk) -> None:
        E = self.trace.n_experts
        ids_KLT = chunk.ids_KLT[..., -chunk.start % self._every :: self._every].astype(np.int64)
        self._n_places += ids_KLT[0].size
        for k, ids_LT in enumerate(ids_KLT):
            for layer, ids_T in enumerate(ids_LT):
                self.counts_LE[layer] += np.bincount(ids_T + 1, minlength=E + 1)[1:]
                for other_LT in ids_KLT[:k]:
                    both_T = (other_LT[layer] + 1) * (E + 1) + ids_T + 1
                    found = np.bincount(both_T, minlength=(E + 1) ** 2).reshape(E + 1, E + 1)[1:, 1:]
                    self.pairs_LEE[layer] += found + found.T

    def sections(self) -> list[Section]:
        trace, E = self.trace, self.trace.n_experts
        if trace.top_k < 2 or E < 2:
            return []
        together_LEE = self.pairs_LEE / np.maximum(self.counts_LE, 1)[..., None]
        lift_LEE = _lift(self.pairs_LEE, self.counts_LE)
        mean_used = round(int(self.counts_LE.sum()) / max(self._n_places, 1))
        chance = max(mean_used - 1, 0) / (E - 1)
        rows = tuple(_row(layer, together_LEE[layer], lift_LEE[layer]) for layer in range(trace.n_layers))
        names = [str(e) for e in range(E)]
        plots = tuple(
            Plot(
                "heatmap", f"Layer {layer}: of an expert's tokens, those another reads too", "the other", "%", names,
                {f"expert {e}": percent(np.where(np.arange(E) == e, np.nan, together_LEE[layer, e])) for e in range(E)},
            ) for layer in shown_layers(trace.n_layers, most=3) if E <= _WIDE
        )  # fmt: skip
        note = (
            f"N_ij / N_i of arXiv 2409.02060; {chance:.1%} is what uniform choices give. The lift compares a pair with "
            "what the shares of its two experts would give."
        )
        facts = {"uniform": chance, "lift": np.round(lift_LEE, 4).tolist() if E <= _WIDE else None,
                 "together": np.round(together_LEE, 5).tolist() if E <= _WIDE else None}  # fmt: skip
        sentence = _say(lift_LEE, together_LEE, chance)
        section = Section(
            "coactivation", "Which experts read together", sentence, _COLUMNS, rows, plots, note, facts
        )  # fmt: skip
        return [section]


_COLUMNS = (
    "layer", "most together", "of the first's %", "of the second's %", "lift", "least together", "of the first's %",
    "of the second's %", "lift", "mean |lift - 1|",
)  # fmt: skip


def _row(layer: int, together_EE: NDArray[np.float64], lift_EE: NDArray[np.float64]) -> tuple[Cell, ...]:
    shape = lift_EE.shape
    cells: list[Cell] = [layer]
    for place in (int(np.nan_to_num(lift_EE).argmax()), int(np.nan_to_num(lift_EE, nan=np.inf).argmin())):
        i, j = (int(n) for n in np.unravel_index(place, shape))
        cells += [f"{i} and {j}", percent(together_EE[i, j]), percent(together_EE[j, i]), _rounded(lift_EE[i, j])]
    return (*cells, _rounded(_spread(lift_EE)))


def _lift(pairs_LEE: NDArray[np.int64], counts_LE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Observed over expected, NaN on the diagonal and where nothing is expected.

    Expected pairs are those of a random graph with these degrees and no loops, found by fitting factors f so that
    Σ_j≠i f_i f_j is what expert i has (iterative proportional fitting).
    """
    E = counts_LE.shape[1]
    degree_LE = pairs_LEE.sum(-1).astype(np.float64)
    factor_LE = np.sqrt(degree_LE + 1e-12)
    for _ in range(200):
        rest_LE = factor_LE.sum(-1, keepdims=True) - factor_LE
        factor_LE = np.sqrt(factor_LE * degree_LE / np.maximum(rest_LE, 1e-12))
    expected_LEE = factor_LE[:, :, None] * factor_LE[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        lift_LEE = np.where(expected_LEE > 0.5, pairs_LEE / expected_LEE, np.nan)
    lift_LEE[:, np.arange(E), np.arange(E)] = np.nan
    return lift_LEE


def _spread(lift_EE: NDArray[np.float64]) -> float:
    kept = lift_EE[np.isfinite(lift_EE)]
    return float(np.abs(kept - 1).mean()) if kept.size else float("nan")


def _rounded(value: float) -> float | None:
    return float(np.round(value, 3)) if np.isfinite(value) else None


def _say(lift_LEE: NDArray[np.float64], together_LEE: NDArray[np.float64], chance: float) -> str:
    if not np.isfinite(lift_LEE).any():
        return "No two experts read the same token."
    layer, i, j = (int(n) for n in np.unravel_index(int(np.nan_to_num(lift_LEE).argmax()), lift_LEE.shape))
    spread = [_spread(lift_EE) for lift_EE in lift_LEE]
    return (
        f"The pair most bound together is experts {i} and {j} of layer {layer}: {together_LEE[layer, i, j]:.0%} of "
        f"expert {i}'s tokens are read by {j} too ({chance:.0%} if choices were uniform), {lift_LEE[layer, i, j]:.1f} "
        f"times what their shares give. A pair differs from that by {np.nanmean(spread):.0%} on average."
    )
