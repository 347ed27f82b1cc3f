"""How sure a figure over texts is: tokens of a text are alike, so texts are drawn again, not tokens.

A figure here is a ratio of two sums over texts, nats over bytes or right answers over questions. The bootstrap draws as
many texts as there are, with replacement, and divides the sums again. Its numbers are drawn from a fixed seed: the same
texts give the same interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Estimate", "estimate"]

_DRAWS = 1000
_CELLS = 1 << 22  # counts that exist together


@dataclass(frozen=True, slots=True)
class Estimate:
    """`stderr`, `low` and `high` (95 % of the draws) are None where there is one text only."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None


def estimate(
    numerators: "np.ndarray[Any, Any] | list[float]",
    denominators: "np.ndarray[Any, Any] | list[float]",
    *,
    seed: int = 0,
    scale: Callable[[Any], Any] = lambda ratio: ratio,
) -> Estimate:
    """`scale(sum of numerators / sum of denominators)` and how far it moves when other texts had been drawn."""
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = float(scale(a.sum() / b.sum()))
    n = len(a)
    if n < 2:
        return Estimate(value, None, None, None)
    generator, ratios = np.random.default_rng(seed), list[Any]()
    at_once = max(1, min(_DRAWS, _CELLS // n))
    for start in range(0, _DRAWS, at_once):
        drawn = generator.integers(n, size=(min(at_once, _DRAWS - start), n))
        total = b[drawn].sum(1)
        ratios.append(a[drawn].sum(1)[total > 0] / total[total > 0])
    draws = scale(np.concatenate(ratios))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(draws.std(ddof=1)), float(low), float(high))
