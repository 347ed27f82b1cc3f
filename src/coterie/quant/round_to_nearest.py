"""Round to nearest, with care for what it is rounded to: the scales that leave the least weighted squared error.

A group is fitted alone. Several ranges are tried, since cutting off its largest weight may serve the others better; for
each the values are rounded and the scale (and offset) that suits them best follows from least squares. Where the scales
are themselves quantised, they and the values take turns. The error is measured with the scales as they are stored.
Shapes: N outputs, K inputs, R groups of n weights each, U units of a block of 256.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coterie.quant.formats import BLOCK, Format
from coterie.quant.tensor import Codes, PackedTensor, pack

__all__ = ["encode", "fit", "fit_offset", "fit_symmetric", "round_to_nearest"]

_PIECE = 1 << 18  # weights at a time: what the processor's cache holds
_CARD_PIECE = 1 << 25  # and on a card, which launches a kernel for each operation
_TINY = 1e-30
_ROUNDS = 4  # of values and quantised scales in turn
_RANGES = {  # by bits: what the range that just holds the largest weight is multiplied by; beyond 1 it is cut off
    8: (1.0,),
    6: (0.98, 1.0, 1.02, 1.04),
    5: (0.94, 0.97, 1.0, 1.03, 1.06, 1.1),
    4: (0.85, 0.9, 0.94, 0.97, 1.0, 1.03, 1.06, 1.1, 1.15, 1.2),
    3: (0.8, 0.87, 0.94, 1.0, 1.07, 1.14, 1.21, 1.28, 1.36, 1.45),
    2: (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.7, 2.0),
}
_SHRINK = {
    8: (1.0,),
    6: (1.0, 0.98),
    5: (1.0, 0.97, 0.94, 0.91),
    4: (1.0, 0.96, 0.92, 0.88, 0.84, 0.8),
    3: (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64),
    2: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.5),
}
Fit = Callable[[Tensor, Tensor, Format], tuple[Tensor, Tensor | None]]  # weights, importances -> scales, offsets


def round_to_nearest(w_NK: Tensor, format: Format, importance_K: Tensor | None = None) -> PackedTensor:
    """A matrix in a format. `importance_K`: how much an error in each input counts (None: all alike)."""
    return pack(format, encode(w_NK, format, importance_K, fit))


def encode(w_NK: Tensor, format: Format, importance_K: Tensor | None, fit: Fit) -> Codes:
    """The values and scales of a matrix of any float type, some rows at a time; `fit` finds the scales of groups."""
    step = max(1, (_PIECE if w_NK.is_cpu else _CARD_PIECE) // w_NK.shape[1])
    pieces = [_encode(w_NK[i : i + step].float(), format, importance_K, fit) for i in range(0, len(w_NK), step)]
    if len(pieces) == 1:
        return pieces[0]

    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        return torch.cat([t for t in tensors if t is not None]) if tensors[0] is not None else None

    u_NK, scale = torch.cat([p.u_NK for p in pieces]), torch.cat([p.scale for p in pieces])
    rest = ([p.offset for p in pieces], [p.sub_scale for p in pieces], [p.sub_offset for p in pieces])
    return Codes(u_NK, scale, *map(joined, rest))


def _encode(w_NK: Tensor, format: Format, importance_K: Tensor | None, fit: Fit) -> Codes:
    N, K = w_NK.shape
    outer = BLOCK if format.is_super else format.group
    h_K = torch.ones(K) if importance_K is None else importance_K.float() / importance_K.float().mean().clamp(min=_TINY)
    w_NGn = functional.pad(w_NK, (0, -K % outer)).view(N, -1, format.group)
    h_Gn = functional.pad(h_K.to(w_NK.device), (0, -K % outer)).view(-1, format.group)
    s, o = fit(w_NGn, h_Gn, format)
    if format.is_super:
        return _with_quantised_scales(w_NGn, h_Gn, s, o, format, K)
    s, o = _to_f16(s), None if o is None else _to_f16(o)
    u_NK = _values(w_NGn, s.float(), None if o is None else o.float(), format).view(N, -1)[:, :K]
    return Codes(u_NK.contiguous(), s.squeeze(-1), None if o is None else o.squeeze(-1))


def fit(w_NGn: Tensor, h_Gn: Tensor, format: Format) -> tuple[Tensor, Tensor | None]:
    """Scales, and offsets where the format has them, [N, G, 1]."""
    if format.zero:
        return fit_symmetric(w_NGn, h_Gn, format.bits), None
    return fit_offset(w_NGn, h_Gn, format.bits, below_zero=format.is_super)


def fit_symmetric(w_NGn: Tensor, h_Gn: Tensor, bits: int) -> Tensor:
    """s [N, G, 1] of w ≈ s q, q from -2^(bits-1) to 2^(bits-1) - 1; s may be negative: the largest weight decides.

    For given q the best s is Σ h w q / Σ h q², and the squared error falls by (Σ h w q)² / Σ h q².
    """
    zero = 1 << (bits - 1)
    largest = w_NGn.gather(-1, w_NGn.abs().argmax(-1, keepdim=True))
    inverse = -zero / torch.where(largest == 0, 1, largest)
    hw_NGn = w_NGn * h_Gn
    best_gain, best_s = torch.full_like(largest, -1), torch.zeros_like(largest)
    for factor in _RANGES[bits]:
        q = (w_NGn * (inverse * factor)).round_().clamp_(-zero, zero - 1)
        wq, qq = (hw_NGn * q).sum(-1, keepdim=True), (q.square() * h_Gn).sum(-1, keepdim=True).clamp_(min=_TINY)
        gain = wq.square() / qq
        better = gain > best_gain
        best_gain, best_s = torch.where(better, gain, best_gain), torch.where(better, wq / qq, best_s)
    return best_s


def fit_offset(w_NGn: Tensor, h_Gn: Tensor, bits: int, *, below_zero: bool = False) -> tuple[Tensor, Tensor]:
    """s and o [N, G, 1] of w ≈ s u + o, u from 0 to 2^bits - 1; `below_zero`: o <= 0."""
    top = (1 << bits) - 1
    low, high = w_NGn.amin(-1, keepdim=True), w_NGn.amax(-1, keepdim=True)
    if below_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    middle, width = (low + high) / 2, (high - low).clamp(min=_TINY)
    best = torch.full_like(low, torch.inf)
    best_s, best_o = width / top, low
    for factor in (*_SHRINK[bits], None, None, None):  # None: from the best so far
        s, o = (best_s, best_o) if factor is None else (width * factor / top, middle - width * factor / 2)
        if below_zero:
            o = o.clamp(max=0)
        u = ((w_NGn - o) / s).round_().clamp_(0, top)
        s, o = _least_squares(w_NGn, u, h_Gn, below_zero)
        error = ((torch.addcmul(o, u, s) - w_NGn).square_() * h_Gn).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        best_s, best_o = torch.where(better, s, best_s), torch.where(better, o, best_o)
    return best_s, best_o


def _least_squares(w: Tensor, u: Tensor, h: Tensor, below_zero: bool) -> tuple[Tensor, Tensor]:
    """The s and o that make s u + o closest to w, over the last dimension, weighted by h."""
    hu = u * h
    H, U, UU = h.sum(-1, keepdim=True), hu.sum(-1, keepdim=True), (hu * u).sum(-1, keepdim=True)
    W, UW = (w * h).sum(-1, keepdim=True), (hu * w).sum(-1, keepdim=True)
    det = H * UU - U * U
    is_flat = det <= 1e-6 * H * UU
    s = torch.where(is_flat, UW / UU.clamp(min=_TINY), (H * UW - U * W) / torch.where(is_flat, 1, det))
    o = torch.where(is_flat, 0, (W - s * U) / H.clamp(min=_TINY))
    if below_zero:
        s, o = torch.where(o > 0, UW / UU.clamp(min=_TINY), s), o.clamp(max=0)
    return s, o


def _values(w: Tensor, s: Tensor, o: Tensor | None, format: Format) -> Tensor:
    """The nearest u, uint8, of weights with these scales; where a scale is 0, that of weight 0."""
    inverse = torch.where(s == 0, 0, 1 / s)
    u = (w if o is None else w - o) * inverse
    return u.round_().add_(format.zero).clamp_(0, (1 << format.bits) - 1).to(torch.uint8)


def _with_quantised_scales(w_NUn: Tensor, h_Un: Tensor, s: Tensor, o: Tensor | None, format: Format, K: int) -> Codes:
    """Codes whose scales, at first s and o [N, U, 1], are quantised 256 k at a time; K inputs of them are kept.

    Each round quantises the scales, then the values with them, and fits both anew to these values; the best one counts.
    """
    N, top = len(w_NUn), {"super": 127, "super_min": 255, "super_nibble": 15}[format.scales]

    def blocks(t: Tensor) -> Tensor:
        return t.reshape(N, -1, BLOCK // format.unit, t.shape[-1])

    w, h = blocks(w_NUn), h_Un.view(-1, BLOCK // format.unit, format.unit)
    scales = _Scales.of(blocks(s), None if o is None else blocks(o), top)
    best, kept = w.new_full((N, w.shape[1], 1, 1), torch.inf), None
    for _ in range(_ROUNDS):
        s, o = scales.decoded()
        u = _values(w, s, o, format).float()
        approx = s * (u - format.zero) if o is None else torch.addcmul(o, s, u)
        error = ((approx - w).square_() * h).sum((-2, -1), keepdim=True)
        now = (u, *scales.parts())
        kept = now if kept is None else tuple(torch.where(error < best, a, b) for a, b in zip(now, kept, strict=True))
        best = torch.minimum(error, best)
        scales = scales.again(w, u - format.zero, h, top)
    assert kept is not None
    u, d, sc, *rest = kept
    flat = [t.view(N, -1) for t in (u, d, sc, *rest)]
    U, kind = -(-K // format.unit), torch.int8 if o is None else torch.uint8
    u_NK, sub_scale = flat[0][:, :K].to(torch.uint8).contiguous(), flat[2][:, :U].to(kind).contiguous()
    if o is None:
        return Codes(u_NK, flat[1].half(), None, sub_scale)
    return Codes(u_NK, flat[1].half(), flat[3].half(), sub_scale, flat[4][:, :U].to(kind).contiguous())


@dataclass(frozen=True)
class _Scales:
    """Quantised scales: d [N, B, 1, 1] times sc [N, B, U, 1], and where there is an offset, -dmin times m."""

    d: Tensor
    sc: Tensor
    dmin: Tensor | None = None
    m: Tensor | None = None

    @staticmethod
    def of(s: Tensor, o: Tensor | None, top: int) -> "_Scales":
        d = _largest(s, top)
        if o is None:
            return _Scales(d, _multiple(s, d, -top - 1, top))
        dmin = _largest(-o, top)
        return _Scales(d, _multiple(s, d, 0, top), dmin, _multiple(-o, dmin, 0, top))

    def decoded(self) -> tuple[Tensor, Tensor | None]:
        return self.d * self.sc, None if self.dmin is None or self.m is None else -(self.dmin * self.m)

    def parts(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.d, self.sc, self.dmin, self.m) if t is not None)

    def again(self, w: Tensor, q: Tensor, h: Tensor, top: int) -> "_Scales":
        """The block's factors that suit these values best, and the multiples of them that suit each unit best."""
        if self.m is None:
            s = (w * q * h).sum(-1, keepdim=True) / (q * q * h).sum(-1, keepdim=True).clamp(min=_TINY)
            d = _best_factor(w, self.sc * q, h)
            return _Scales(d, _multiple(s, d, -top - 1, top))
        s, o = _least_squares(w, q, h, below_zero=True)
        d, dmin = _best_pair(w, self.sc * q, self.m.expand_as(w), h)
        return _Scales(d, _multiple(s, d, 0, top), dmin, _multiple(-o, dmin, 0, top))


def _largest(t: Tensor, top: int) -> Tensor:
    """The factor, as stored, with which the largest of a block's scales is `top`."""
    flat = t.flatten(-2)
    largest = flat.gather(-1, flat.abs().argmax(-1, keepdim=True))
    return _to_f16(largest / top).float().unsqueeze(-1)


def _multiple(t: Tensor, d: Tensor, low: int, high: int) -> Tensor:
    return (t * torch.where(d == 0, 0, 1 / d)).round_().clamp_(low, high)


def _best_factor(w: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """The d, as stored, that makes d x closest to w in each block."""
    hx = x * h
    d = (hx * w).sum((-2, -1), keepdim=True) / (hx * x).sum((-2, -1), keepdim=True).clamp(min=_TINY)
    return _to_f16(d).float()


def _best_pair(w: Tensor, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The d and dmin, as stored, that make d x - dmin y closest to w in each block."""

    def total(t: Tensor) -> Tensor:
        return t.sum((-2, -1), keepdim=True)

    hx, hy = x * h, y * h
    xx, xy, yy, xw, yw = total(hx * x), total(hx * y), total(hy * y), total(hx * w), total(hy * w)
    det = xx * yy - xy * xy
    is_flat = det <= 1e-6 * xx * yy
    det = torch.where(is_flat, 1, det)
    d = torch.where(is_flat, xw / xx.clamp(min=_TINY), (xw * yy - yw * xy) / det)
    dmin = torch.where(is_flat, 0, (xw * xy - yw * xx) / det).clamp(min=0)
    return _to_f16(d).float(), _to_f16(dmin).float()


def _to_f16(t: Tensor) -> Tensor:
    return t.clamp(-65504, 65504).half()
