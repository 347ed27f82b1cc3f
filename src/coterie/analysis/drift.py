"""Two or more checkpoints that read the same text: how far their routing has moved, and how settled it is.

Agreement at first choice is the share of tokens whose first expert is the same; as sets it is |A ∩ B| / K, OLMoE's
router saturation where B is the last checkpoint (arXiv 2409.02060, 5.1). Beside it stands what the shares of the two
would give if they chose independently. The weights moved are the total variation distance of what each gives to its
experts. Experts of runs that do not descend from each other bear no common names, so the best renaming is tried too.
Shapes: T tokens of a chunk, L layers, B blocks, E experts, K slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.blocks import Blocks, blocks_of
from coterie.analysis.intervals import Shares, distance, ratio_interval
from coterie.analysis.matching import best_matching
from coterie.analysis.scan import Chunk, Progress, chunks
from coterie.analysis.trace import Trace
from coterie.errors import DataError

__all__ = ["Drift", "check_comparable", "drift_between", "measure_drift"]


@dataclass(frozen=True)
class Drift:
    """From one checkpoint to another, by layer; `by_domain` has the agreement of sets."""

    first: Shares
    sets: Shares
    by_domain: dict[str, NDArray[np.float64]]
    first_by_chance: NDArray[np.float64]
    sets_by_chance: NDArray[np.float64]
    first_renamed: NDArray[np.float64]
    weights_moved: NDArray[np.float64]
    shares_moved: NDArray[np.float64]


def check_comparable(traces: Sequence[Trace], names: Sequence[str]) -> None:
    """`DataError` unless all are of the same text, token for token, and of models of the same shape."""
    first = traces[0]
    for trace, name in zip(traces[1:], names[1:], strict=True):
        for what, mine, its in (
            ("sparse layers", first.n_layers, trace.n_layers),
            ("experts a layer", first.n_experts, trace.n_experts),
            ("experts a token", first.top_k, trace.top_k),
        ):
            if mine != its:
                raise DataError(
                    f"{names[0]} has {mine} {what} and {name} has {its}; only traces of models of one shape can be "
                    "compared"
                )
        _check_same_text(first, trace, names[0], name)


def _check_same_text(a: Trace, b: Trace, name_a: str, name_b: str) -> None:
    what = "record both from the same files with the same tokenizer, window and number of tokens"
    if len(a) != len(b):
        raise DataError(f"{name_a} has {len(a):,} tokens and {name_b} has {len(b):,}; {what}")
    apart = np.flatnonzero(np.asarray(a.token_ids) != np.asarray(b.token_ids))
    if len(apart):
        at = int(apart[0])
        raise DataError(
            f"{name_a} and {name_b} are of other text: token {at:,} is {int(a.token_ids[at])} in one and "
            f"{int(b.token_ids[at])} in the other; {what}"
        )
    if not np.array_equal(a.documents, b.documents) or not np.array_equal(a.positions, b.positions):
        raise DataError(f"{name_a} and {name_b} cut the same tokens into other documents or windows; {what}")


def measure_drift(
    traces: Sequence[Trace], pairs: Sequence[tuple[int, int]], progress: Progress | None = None
) -> dict[tuple[int, int], Drift]:
    """For pairs of traces (by index): how the second differs from the first. Domains are those of the first trace."""
    found = {}
    n = len(traces[0])
    blocks = blocks_of(traces[0])
    for done, (a, b) in enumerate(pairs):

        def report(tokens: int, total: int, done: int = done) -> None:
            if progress:
                progress(done * n + tokens, len(pairs) * n)

        found[a, b] = drift_between(traces[a], traces[b], blocks, report)
    return found


def drift_between(a: Trace, b: Trace, blocks: Blocks, progress: Progress | None = None) -> Drift:
    """Walk through both side by side; they must be comparable."""
    counter = _Counter(a, blocks)
    for chunk, other in zip(chunks(a, blocks, progress), chunks(b, blocks), strict=True):
        counter.add(chunk, other)
    return counter.drift()


class _Counter:
    def __init__(self, trace: Trace, blocks: Blocks) -> None:
        self.trace, self.blocks = trace, blocks
        L, E, B = trace.n_layers, trace.n_experts, len(blocks)
        self.same_LB, self.common_LB, self.tokens_LB = (np.zeros((L, B), dtype=np.int64) for _ in range(3))
        self.slots_LB, self.moved_LB = np.zeros((L, B), dtype=np.int64), np.zeros((L, B))
        self.first_LEE = np.zeros((L, E, E), dtype=np.int64)  # by the first choice in A, in B
        self.used_2LE = np.zeros((2, L, E), dtype=np.int64)

    def add(self, a: Chunk, b: Chunk) -> None:
        E, B = self.trace.n_experts, len(self.blocks)
        for layer in range(self.trace.n_layers):
            ids_a_KT, ids_b_KT = a.ids_KLT[:, layer], b.ids_KLT[:, layer]
            is_used_T = (ids_a_KT[0] >= 0) & (ids_b_KT[0] >= 0)
            common_T, kept_T = np.zeros(len(a), dtype=np.int64), np.zeros(len(a))
            for k, ids_a_T in enumerate(ids_a_KT):
                for j, ids_b_T in enumerate(ids_b_KT):
                    is_same_T = (ids_a_T == ids_b_T) & (ids_a_T >= 0)
                    common_T += is_same_T
                    kept_T += np.where(is_same_T, np.minimum(a.weights_KLT[k, layer], b.weights_KLT[j, layer]), 0)
            slots_T = np.maximum((ids_a_KT >= 0).sum(0), (ids_b_KT >= 0).sum(0))
            same_T = is_used_T & (ids_a_KT[0] == ids_b_KT[0])
            for total_LB, values_T in (
                (self.same_LB, same_T), (self.common_LB, common_T), (self.slots_LB, slots_T),
                (self.tokens_LB, is_used_T), (self.moved_LB, np.where(is_used_T, 1 - kept_T, 0)),
            ):  # fmt: skip
                found_B = np.bincount(a.block_T, values_T, minlength=B)
                total_LB[layer] += found_B.astype(total_LB.dtype)
            both_T = (ids_a_KT[0].astype(np.int64) * E + ids_b_KT[0])[is_used_T]
            self.first_LEE[layer] += np.bincount(both_T, minlength=E * E).reshape(E, E)
            for side, ids_KT in enumerate((ids_a_KT, ids_b_KT)):
                self.used_2LE[side, layer] += np.bincount(ids_KT.ravel() + 1, minlength=E + 1)[1:]

    def drift(self) -> Drift:
        n_L = np.maximum(self.first_LEE.sum((1, 2)), 1)
        share_2LE = self.used_2LE / np.maximum(self.used_2LE.sum(-1, keepdims=True), 1)
        a_LE, b_LE = self.first_LEE.sum(2) / n_L[:, None], self.first_LEE.sum(1) / n_L[:, None]
        renamed = [float(m[np.arange(len(m)), best_matching(m)].sum()) for m in self.first_LEE]
        K = self.used_2LE.sum((0, 2)) / np.maximum(2 * self.tokens_LB.sum(1), 1)  # slots in use
        return Drift(
            self._of(self.same_LB, self.tokens_LB),
            self._of(self.common_LB, self.slots_LB),
            {
                name: self._of(self.common_LB, self.slots_LB, d).value
                for d, name in enumerate(self.trace.domains)
            },
            (a_LE * b_LE).sum(-1),
            K * (share_2LE[0] * share_2LE[1]).sum(-1),
            np.array(renamed) / n_L,
            self.moved_LB.sum(1) / np.maximum(self.tokens_LB.sum(1), 1),
            distance(share_2LE[0], share_2LE[1]),
        )  # fmt: skip

    def _of(self, counts_LB: NDArray[np.int64], totals_LB: NDArray[np.int64], domain: int | None = None) -> Shares:
        mine = self.blocks.of_domain(domain)
        return ratio_interval(counts_LB[:, mine].T, totals_LB[:, mine].T, self.blocks.domain_B[mine])
