"""Hit rates of simulated caches by size, policy and domain, with intervals over the stretches of the sample.

Shapes: N stretches, S tokens of each, P policies, M sizes, L layers, K experts per token, E experts, G domains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.intervals import ratio_interval
from coterie.analysis.replay import LAYER_POLICIES, POLICIES, Turns, replay, turns_by_layer, turns_of_all
from coterie.analysis.stretches import Sample
from coterie.analysis.trace import Trace

__all__ = ["HitRates", "cache_sizes", "measure_hits"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class HitRates:
    """Of simulated caches: `rate_PM` with the ends of its interval, `domain_PGM` (NaN without tokens); `sizes` are
    experts in memory over all layers."""

    policies: tuple[str, ...]
    sizes: tuple[int, ...]
    rate_PM: Floats
    low_PM: Floats
    high_PM: Floats
    domain_PGM: Floats
    n_tokens: int

    def at(self, policy: str, size: int) -> float | None:
        """None for a size or a policy that was not simulated."""
        if policy not in self.policies or size not in self.sizes:
            return None
        return float(self.rate_PM[self.policies.index(policy), self.sizes.index(size)])

    def least(self, policy: str, wanted: float, everything: int) -> int:
        """The smallest simulated size with that hit rate; everything, where none has it."""
        rates = self.rate_PM[self.policies.index(policy)]
        return next((size for size, rate in zip(self.sizes, rates, strict=True) if rate >= wanted), everything)


def cache_sizes(n_experts: int, top_k: int, most: int = 7) -> list[int]:
    """Sizes of a layer's cache, from what a token needs to one less than all: every one, or `most` on a log scale."""
    if n_experts - top_k <= most:
        return list(range(top_k, n_experts))
    return sorted({round(top_k * (n_experts / top_k) ** (i / most)) for i in range(most)} - {n_experts})


def measure_hits(
    trace: Trace, sample: Sample, *, is_shared: bool, progress: Callable[[int, int], None] | None = None
) -> HitRates:
    """A cache for each layer, all of one size; or, `is_shared`, one for all of them."""
    L, K, G = sample.n_layers, sample.top_k, len(trace.domains)
    sizes = cache_sizes(sample.n_experts, K)
    totals = [L * size for size in sizes]
    if is_shared:
        totals = sorted({max(K, L * K // 2), *totals})
    if not sizes:
        return _no_rates(POLICIES if is_shared else LAYER_POLICIES, G, sample.n_tokens)
    turns = turns_of_all(sample) if is_shared else turns_by_layer(sample)
    hits_SNPM, asked_SN = _by_token(turns, replay(turns, totals if is_shared else sizes, progress), sample)
    hits_NPM, asked_N = hits_SNPM.sum(0), asked_SN.sum(0)
    shares, shape = ratio_interval(hits_NPM.reshape(len(asked_N), -1), asked_N[:, None]), hits_NPM.shape[1:]
    ends = (shares.value.reshape(shape), shares.low.reshape(shape), shares.high.reshape(shape))
    domain_SN = np.where(sample.token_SN >= 0, np.asarray(trace.domain_of_T)[sample.token_SN], -1)
    by_domain = _by_domain(hits_SNPM, asked_SN, domain_SN, G)
    return HitRates(turns.policies, tuple(totals), *ends, by_domain, sample.n_tokens)


def _by_domain(hits_SNPM: Counts, asked_SN: Counts, domain_SN: NDArray[np.int16], n_domains: int) -> Floats:
    """Hit rates [P, G, M], NaN for a domain that the sample has nothing of."""
    found = np.full((hits_SNPM.shape[2], n_domains, hits_SNPM.shape[3]), np.nan)
    for domain in range(n_domains):
        is_mine = domain_SN == domain
        if n := int(asked_SN[is_mine].sum()):
            found[:, domain] = hits_SNPM[is_mine].sum(0) / n
    return found


def _by_token(turns: Turns, hits_QPCM: NDArray[np.uint8], sample: Sample) -> tuple[Counts, Counts]:
    """Hits [S, N, P, M] and what was asked for [S, N], over all layers; nothing of tokens that are not counted."""
    S, N, L, K = sample.experts_SNLK.shape
    P, M = hits_QPCM.shape[1], hits_QPCM.shape[3]
    is_asked = turns.asked_QKC < turns.n_rows
    if turns.n_layers == 1:
        hits = hits_QPCM.reshape(S, P, N, L, M).sum(3, dtype=np.int64).transpose(0, 2, 1, 3)
        asked = is_asked.reshape(S, K, N, L).sum((1, 3))
    else:
        hits = hits_QPCM.reshape(S, L, P, N, M).sum(1, dtype=np.int64).transpose(0, 2, 1, 3)
        asked = is_asked.reshape(S, L, K, N).sum((1, 2))
    return hits * sample.is_counted_SN[:, :, None, None], asked * sample.is_counted_SN


def _no_rates(policies: Sequence[str], n_domains: int, n_tokens: int) -> HitRates:
    """Where each token needs all experts there is nothing to choose."""
    P, none = len(policies), np.zeros((len(policies), 0))
    return HitRates(tuple(policies), (), none, none, none, np.zeros((P, n_domains, 0)), n_tokens)
