"""Elo: ratings that move with every battle, so they depend on the order, and how much they do.

    expected = 1 / (1 + 10^((R_b - R_a) / 400))        R_a += K (score - expected),  R_b the other way

With K = 4 a rating needs some hundred battles to arrive. The spread over random orders of the same battles is what the
order alone is worth; one order is one draw from it.

Shapes: P orders, M models, N battles.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.eval.bradley_terry import BASE, CENTRE, SCALE, expected_score

__all__ = ["K", "elo", "elo_in_orders"]

Array = NDArray[np.float64]

K = 4.0
_TO_THETA = math.log(BASE) / SCALE
_MOST_PLACES = 20_000_000  # orders times battles held at once


def elo(a_N: NDArray[np.intp], b_N: NDArray[np.intp], score_N: Array, n_models: int) -> Array:
    """Ratings [M] after the battles in the order given; everybody begins at 1000."""
    first: Array = _play(a_N, b_N, score_N, np.arange(len(a_N))[:, None], n_models, lambda done, total: None)[0]
    return first


def elo_in_orders(
    a_N: NDArray[np.intp],
    b_N: NDArray[np.intp],
    score_N: Array,
    n_models: int,
    *,
    n_orders: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """Ratings [P, M], each after the same battles in another random order; fewer orders of very many battles."""
    N, rng = len(a_N), np.random.default_rng(seed)
    P = max(1, min(n_orders, _MOST_PLACES // N))
    order_NP = np.stack([rng.permutation(N).astype(np.int32) for _ in range(P)], axis=1)
    return _play(a_N, b_N, score_N, order_NP, n_models, progress)


def _play(
    a_N: NDArray[np.intp],
    b_N: NDArray[np.intp],
    score_N: Array,
    order_NP: NDArray[np.integer[Any]],
    n_models: int,
    progress: Callable[[int, int], None],
) -> Array:
    """All orders side by side: step n plays the n-th battle of each."""
    N, P = order_NP.shape
    rating_PM, orders = np.full((P, n_models), CENTRE), np.arange(P)
    for n, battle_P in enumerate(order_NP):
        a_P, b_P = a_N[battle_P], b_N[battle_P]
        ahead_P = (rating_PM[orders, a_P] - rating_PM[orders, b_P]) * _TO_THETA
        moved_P = K * (score_N[battle_P] - expected_score(ahead_P))
        rating_PM[orders, a_P] += moved_P
        rating_PM[orders, b_P] -= moved_P
        if n % 1000 == 0:
            progress(n, N)
    return rating_PM
