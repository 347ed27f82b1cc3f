"""Half-quadratic quantization (Badri and Shaji, 2023): scales that let a few weights be wrong, found without any text.

Least squares lets the largest errors decide. Here the error counts with the power p < 1, as if most of it were zero and
a few weights were outliers. With a second variable e for the outliers, min |e|^p + β/2 |w - e - ŵ|² splits in two easy
steps that take turns while β grows: e is the error w - ŵ, shrunk towards 0; and the offset (without one: the scale)
becomes the mean that fits the values to w - e. Errors are counted in steps of the scale, so β is the same for all.
The published solver takes the range of a group for its scale and looks for offsets only. Here it starts from the scales
of `round_to_nearest`, which is better, and formats without an offset have their scale found in the same way.
Shapes: N outputs, K inputs, G groups of n.
"""

import torch
from torch import Tensor

from coterie.quant.formats import Format
from coterie.quant.round_to_nearest import encode, fit_offset, fit_symmetric
from coterie.quant.tensor import PackedTensor, pack

__all__ = ["half_quadratic", "shrink"]

_P, _BETA, _GROWTH, _ROUNDS = 0.7, 4.0, 1.05, 20
_TINY = 1e-30


def half_quadratic(w_NK: Tensor, format: Format, importance_K: Tensor | None = None) -> PackedTensor:
    """A matrix in a format. `importance_K` weighs the means (None: all inputs alike)."""
    return pack(format, encode(w_NK, format, importance_K, _solve))


def shrink(e: Tensor, beta: float) -> Tensor:
    """The proximal step of |e|^p: the smaller an error, the more of it is taken off; small ones become 0."""
    size = e.abs()
    return (size - size.clamp(min=_TINY).pow(_P - 1) / beta).clamp_(min=0).copysign_(e)


def _solve(w_NGn: Tensor, h_Gn: Tensor, format: Format) -> tuple[Tensor, Tensor | None]:
    """Scales, and offsets where the format has them, [N, G, 1]."""
    if format.zero:
        return _solve_scale(w_NGn, h_Gn, format), None
    return _solve_offset(w_NGn, h_Gn, format)


def _solve_offset(w: Tensor, h: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    top, s, o = (1 << format.bits) - 1, *fit_offset(w, h, format.bits, below_zero=format.is_super)
    step = torch.where(s == 0, 1, s)
    x, total, beta = w / step, h.sum(-1, keepdim=True).clamp(min=_TINY), _BETA
    z = -o / step
    best, best_z = torch.full_like(z, torch.inf), z
    for _ in range(_ROUNDS):
        u = (x + z).round_().clamp_(0, top)
        e = x - (u - z)
        error = (e.abs().pow_(_P) * h).sum(-1, keepdim=True)
        best, best_z = torch.minimum(error, best), torch.where(error < best, z, best_z)
        z = ((u - x + shrink(e, beta)) * h).sum(-1, keepdim=True) / total
        if format.is_super:
            z = z.clamp(min=0)
        beta *= _GROWTH
    return s, -best_z * step


def _solve_scale(w: Tensor, h: Tensor, format: Format) -> Tensor:
    zero, s = format.zero, fit_symmetric(w, h, format.bits)
    x, beta = w / torch.where(s == 0, 1, s), _BETA  # in steps of the first scale; r is the scale in such steps
    r = torch.ones_like(s)
    best, best_r = torch.full_like(r, torch.inf), r
    for _ in range(_ROUNDS):
        q = (x / r).round_().clamp_(-zero, zero - 1)
        e = x - r * q
        error = (e.abs().pow_(_P) * h).sum(-1, keepdim=True)
        best, best_r = torch.minimum(error, best), torch.where(error < best, r, best_r)
        hq = h * q
        r = (hq * (x - shrink(e, beta))).sum(-1, keepdim=True) / (hq * q).sum(-1, keepdim=True).clamp(min=_TINY)
        r = r.clamp(min=0.5, max=2)
        beta *= _GROWTH
    return best_r * s
