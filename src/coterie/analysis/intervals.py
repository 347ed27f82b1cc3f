"""Intervals and tests for figures of tokens that come in blocks.

A share is a ratio of two sums over blocks, Σ count / Σ total. Its standard error is that of a ratio of cluster totals
(Cochran, Sampling Techniques, 3rd edition, section 9A.2: z_b = count_b - share · total_b), its interval Student's with
B - 1 degrees of freedom, one less for each further domain, since domains are strata. The design effect is that variance
over the one that independent tokens would have. Whether domains differ is tested by giving their blocks other domains
at random: no assumption but that blocks may be exchanged.
Shapes: B blocks, M domains, X cells (whatever is counted), G groups of cells (layers), P permutations.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Shares", "differences", "distance", "ratio_interval", "student"]

Floats = NDArray[np.float64]
_PERMUTATIONS, _PRODUCTS = 999, 2e10  # at most; multiplications spent on them


@dataclass(frozen=True)
class Shares:
    """A ratio with the ends of its 95 % interval and the design effect, each of the shape that was asked for."""

    value: Floats
    low: Floats
    high: Floats
    design_effect: Floats
    n_blocks: int


def ratio_interval(
    counts_BX: NDArray[Any],
    totals_BX: NDArray[Any],
    domain_B: NDArray[np.int64] | None = None,
    *,
    is_share: bool = True,
) -> Shares:
    """Σ counts / Σ totals over the blocks, with a 95 % interval; NaN where there is nothing, or one block only.

    `domain_B` makes domains strata: their part in the text is given, so only what differs within one is uncertain.
    `is_share` keeps the ends within 0 and 1. The totals may be [B, X] or one for all cells [B, 1].
    """
    counts, totals = counts_BX.astype(np.float64), np.broadcast_to(totals_BX, counts_BX.shape).astype(np.float64)
    n, B = totals.sum(0), len(counts)
    strata = [np.arange(B)] if domain_B is None else [np.flatnonzero(domain_B == d) for d in np.unique(domain_B)]
    freedom = B - len(strata)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(n > 0, counts.sum(0) / n, np.nan)
        apart = counts - value * totals
        spread = sum((_spread(apart[mine]) for mine in strata), np.zeros_like(value))
        variance = spread / np.square(n) if freedom > 0 else np.full_like(value, np.nan)
        alone = value * (1 - value) / n
        effect = np.where(alone > 0, variance / alone, np.nan)
    half = student(freedom) * np.sqrt(variance)
    low, high = value - half, value + half
    return Shares(value, np.clip(low, 0, 1) if is_share else low, np.clip(high, 0, 1) if is_share else high, effect, B)


def _spread(apart_BX: Floats) -> Floats:
    """B times the variance of a stratum's blocks; a block alone counts with all that it is apart from the mean."""
    B = len(apart_BX)
    if B == 1:
        return np.asarray(np.square(apart_BX[0]))
    return np.asarray(np.square(apart_BX - apart_BX.mean(0)).sum(0) * (B / (B - 1)))


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t (Abramowitz and Stegun 26.7.5; exact for 1 and 2): 1.96 for many."""
    if freedom < 1:
        return math.nan
    if freedom < 3:
        return (12.7062, 4.30265)[freedom - 1]
    z, n = 1.959964, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def distance(a: Floats, b: Floats) -> Floats:
    """The total variation distance of distributions over the last axis: the share that would have to move, 0 to 1."""
    return np.asarray(np.abs(a - b).sum(-1) / 2)


@dataclass(frozen=True)
class Difference:
    """Whether domains differ, by group: `found` is the mean distance of a domain from all, weighted by its tokens.

    `by_chance` is the mean of it over permutations, `p` the share of permutations (the real one counted) whose
    chi-square is as large; `p_all` of the sum over groups.
    """

    found_G: Floats
    by_chance_G: Floats
    cramers_v_G: Floats
    p_G: Floats
    p_all: float
    n_permutations: int


def differences(counts_BGE: NDArray[Any], domain_B: NDArray[np.int64], n_domains: int, *, seed: int = 0) -> Difference:
    """Compare the distributions over E of the domains, in each of G groups; `p` is NaN where there is one domain."""
    B, G, E = counts_BGE.shape
    n = int(np.clip(_PRODUCTS // max(n_domains * B * G * E, 1), 99, _PERMUTATIONS))
    flat = np.ascontiguousarray(counts_BGE.reshape(B, G * E), dtype=np.float32)
    rng = np.random.default_rng(seed)
    real = _statistics(flat, domain_B[None], n_domains, G)
    drawn, done, size = [], 0, max(min(n, 4_000_000 // max(n_domains * B, 1)), 1)
    while done < n and len(np.unique(domain_B)) > 1:
        some = min(size, n - done)
        drawn.append(_statistics(flat, rng.permuted(np.tile(domain_B, (some, 1)), axis=1), n_domains, G))
        done += some
    total, dims = counts_BGE.sum((0, 2)), max(min(n_domains, E) - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        v_G = np.sqrt(real[0][0] / total / dims)
    if not drawn:
        nothing = np.full(G, np.nan)
        return Difference(real[1][0], nothing, v_G, nothing, math.nan, 0)
    chi_PG, distance_PG = np.concatenate([d[0] for d in drawn]), np.concatenate([d[1] for d in drawn])
    close = 1 - 1e-6  # sums in another order are the same sums
    p_G = (1 + (chi_PG >= real[0] * close).sum(0)) / (n + 1)
    p_all = (1 + int((chi_PG.sum(1) >= real[0].sum() * close).sum())) / (n + 1)
    return Difference(real[1][0], distance_PG.mean(0), v_G, p_G, p_all, n)


def _statistics(flat_BX: NDArray[np.float32], domain_PB: NDArray[np.int64], M: int, G: int) -> tuple[Floats, Floats]:
    """Chi-square and mean distance [P, G] of each way to give the blocks domains."""
    P, B = domain_PB.shape
    member = np.zeros((P, M, B), dtype=np.float32)
    np.put_along_axis(member, domain_PB[:, None], 1, axis=1)
    counts = (member.reshape(P * M, B) @ flat_BX).reshape(P, M, G, -1).astype(np.float64)
    n_PMG1 = counts.sum(-1, keepdims=True)
    all_GE = flat_BX.astype(np.float64).sum(0).reshape(G, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fair_GE = all_GE / all_GE.sum(-1, keepdims=True)
        share = np.where(n_PMG1 > 0, counts / n_PMG1, fair_GE)
        squares = np.where(fair_GE > 0, np.square(share - fair_GE) / fair_GE, 0)
        weight_PMG = n_PMG1[..., 0] / all_GE.sum(-1)
    chi_PG = (squares.sum(-1) * n_PMG1[..., 0]).sum(1)
    return chi_PG, (distance(share, fair_GE) * weight_PMG).sum(1)
