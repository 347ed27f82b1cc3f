"""Bradley-Terry: the ratings under which the battles that were seen are likeliest.

    P(i beats j) = 1 / (1 + 10^((r_j - r_i) / 400))        r = 400 / ln 10 · θ + 1000,  Σ θ = 0

That is logistic regression without an intercept on one column of ±1 for each model; only the counts matter, so it is
solved on the table of wins, many tables at once (the resamples of a bootstrap). A tie is half a win for each.
A model that never lost has no finite maximum. It is there only where every model can be reached from every other along
"has won against"; `can_rate` tells.
Example: 3 wins to 1 put two models 400 · log10(3) = 190.8 apart.

Shapes: R tables, M models.
"""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["BASE", "CENTRE", "SCALE", "bradley_terry", "can_rate", "expected_score", "is_joined"]

Array = NDArray[np.float64]

BASE, SCALE, CENTRE = 10.0, 400.0, 1000.0
_MOST_STEPS = 200
_LONGEST_STEP = 4.0  # in θ, about 700 points
_SMALL = 1e-7  # in θ, 2e-5 points: a step after which there is no other


def bradley_terry(wins_RMM: Array) -> Array:
    """Ratings [R, M] with mean 1000, from wins [R, M, M]: row beats column, ties half and half. See `can_rate`.

    Newton's method on the concave log-likelihood, steps halved until it rises.
    """
    wins_RMM = np.asarray(wins_RMM, dtype=np.float64)
    R, M, _ = wins_RMM.shape
    met_RMM = wins_RMM + wins_RMM.transpose(0, 2, 1)
    theta_RM = np.zeros((R, M))
    for _ in range(_MOST_STEPS):
        p_RMM = expected_score(theta_RM[:, :, None] - theta_RM[:, None, :])
        slope_RM = (wins_RMM - met_RMM * p_RMM).sum(2)
        step_RM = _newton_step(met_RMM * p_RMM * (1 - p_RMM), slope_RM)
        theta_RM = _rise(wins_RMM, theta_RM, step_RM)
        if (np.abs(step_RM) <= _SMALL).all():
            break
    return theta_RM * (SCALE / math.log(BASE)) + CENTRE


def expected_score(difference: Array) -> Array:
    """1 / (1 + e^-x), the score that a model expects that is ahead by x in θ; never overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * difference))


def can_rate(wins_RMM: Array) -> NDArray[np.bool_]:
    """[R]: whether the maximum is finite, that is, whether each model leads to each by a chain of wins."""
    R, M, _ = wins_RMM.shape
    reach_RMM = (wins_RMM > 0) | np.eye(M, dtype=bool)
    for _ in range(max(1, (M - 1).bit_length())):  # squaring doubles the length of chains
        reach_RMM = (reach_RMM.astype(np.float32) @ reach_RMM.astype(np.float32)) > 0
    result: NDArray[np.bool_] = reach_RMM.reshape(R, -1).all(1)
    return result


def is_joined(wins_MM: Array) -> bool:
    """Whether chains of battles, whoever won, join all models: else there is no common scale at all."""
    return bool(can_rate((wins_MM + wins_MM.T)[None])[0])


def _newton_step(curve_RMM: Array, slope_RM: Array) -> Array:
    """Solve the Laplacian of the curvatures; its null space, all ratings moved together, is closed by adding 1/M."""
    M = slope_RM.shape[1]
    hessian_RMM = -curve_RMM
    hessian_RMM[:, range(M), range(M)] = curve_RMM.sum(2) - curve_RMM[:, range(M), range(M)]
    step_RM = np.linalg.solve(hessian_RMM + 1.0 / M, slope_RM[:, :, None])[:, :, 0]
    return _shortened(step_RM - step_RM.mean(1, keepdims=True))


def _shortened(step_RM: Array) -> Array:
    longest_R = np.abs(step_RM).max(1, keepdims=True)
    shorter: Array = step_RM * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest_R, 1e-300))
    return shorter


def _rise(wins_RMM: Array, theta_RM: Array, step_RM: Array) -> Array:
    """Each table's step, halved until its likelihood does not fall."""
    before_R = _log_likelihood(wins_RMM, theta_RM)
    length_R1 = np.ones((len(theta_RM), 1))
    for _ in range(30):
        after_R = _log_likelihood(wins_RMM, theta_RM + length_R1 * step_RM)
        falls_R = after_R < before_R - 1e-12 * np.abs(before_R)
        if not falls_R.any():
            break
        length_R1[falls_R] *= 0.5
    return theta_RM + length_R1 * step_RM


def _log_likelihood(wins_RMM: Array, theta_RM: Array) -> Array:
    total: Array = -(wins_RMM * np.logaddexp(0.0, theta_RM[:, None, :] - theta_RM[:, :, None])).sum((1, 2))
    return total
