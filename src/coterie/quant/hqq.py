"""Half-quadratic quantization (Badri and Shaji, 2023): scales that let a few weights be wrong, found without any text.

Least squares lets the largest errors decide. Here the error counts with the power p < 1, as if most of it were zero and
a few weights were outliers. With a second variable e for the outliers, min |e|^p + β/2 |w - e - ŵ|² splits in two easy
steps that take turns while β grows: e is the error w - ŵ, shrunk towards 0; and the offset (without one: the scale)
becomes the mean that fits the values to w - e. Errors are counted in steps of the scale, so β is the same for all.
The published solver keeps scales as they are and looks for offsets only; formats without an offset have their scale
found in the same way. Shapes: N outputs, K inputs, G groups of n.
"""

import torch
from torch import Tensor
from torch.nn import functional

from coterie.quant.formats import BLOCK, Format
from coterie.quant.round_to_nearest import fit_offset, fit_symmetric, in_pieces, to_f16, values, with_quantised_scales
from coterie.quant.tensor import Codes, PackedTensor, pack

__all__ = ["encode", "half_quadratic", "shrink"]

_P, _BETA, _GROWTH, _ROUNDS = 0.7, 4.0, 1.05, 20
_TINY = 1e-30


def half_quadratic(w_NK: Tensor, format: Format, importance_K: Tensor | None = None) -> PackedTensor:
    """A matrix in a format. `importance_K` weighs the means (None: all inputs alike)."""
    return pack(format, in_pieces(encode, w_NK, format, importance_K))


def shrink(e: Tensor, beta: float) -> Tensor:
    """The proximal step of |e|^p: the smaller an error, the more of it is taken off; small ones become 0."""
    size = e.abs()
    return (size - size.clamp(min=_TINY).pow(_P - 1) / beta).clamp_(min=0).copysign_(e)


def encode(w_NK: Tensor, format: Format, importance_K: Tensor | None = None) -> Codes:
    """The values and scales of a float32 matrix."""
    N, K = w_NK.shape
    outer = BLOCK if format.is_super else format.group
    h_K = torch.ones(K) if importance_K is None else importance_K.float() / importance_K.float().mean().clamp(min=_TINY)
    w_NGn = functional.pad(w_NK, (0, -K % outer)).view(N, -1, format.group)
    h_Gn = functional.pad(h_K.to(w_NK.device), (0, -K % outer)).view(-1, format.group)
    has_offset = format.scales not in ("f16", "super")
    s, o = _solve_offset(w_NGn, h_Gn, format) if has_offset else (_solve_scale(w_NGn, h_Gn, format), None)
    if format.is_super:
        return with_quantised_scales(w_NGn, h_Gn, s, o, format, K)
    s, o = to_f16(s), None if o is None else to_f16(o)
    u_NK = values(w_NGn, s.float(), None if o is None else o.float(), format).view(N, -1)[:, :K]
    return Codes(u_NK.contiguous(), s.squeeze(-1), None if o is None else o.squeeze(-1))


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
