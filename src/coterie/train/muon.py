"""Muon: momentum whose update is made orthogonal, for the matrices between embedding and head (Jordan et al., 2024).

Every direction of an update then moves by the same amount, also those that Adam hardly sees: rare tokens and copying
are learnt in fewer steps. Updates are scaled to AdamW's usual size, 0.2 per element, so one learning rate serves both
(arXiv 2502.16982, section 2.2). A stack of experts [E, N, D] is E matrices; fused weights are cut into their own.
"""

import math

import torch
from torch import Tensor

__all__ = ["orthogonalise", "scaled_update"]

_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # a quintic that takes singular values from (0, 1] to about 1


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to each [..., N, D], roughly: singular values between 0.7 and 1.2.

    Five Newton-Schulz steps in bfloat16; the result is float32. A float64 matrix stays that throughout.
    """
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    near: Tensor = x.mT if is_tall else x
    return near if near.dtype == torch.float64 else near.float()


def scaled_update(matrix: Tensor, rows: tuple[int, ...] = ()) -> Tensor:
    """`orthogonalise` with elements of about 0.2 (RMS); `rows` cuts the second last axis into matrices of their own."""
    parts = torch.split(matrix, list(rows), -2) if rows else (matrix,)
    return torch.cat([orthogonalise(p) * (0.2 * math.sqrt(max(p.shape[-2:]))) for p in parts], -2)
