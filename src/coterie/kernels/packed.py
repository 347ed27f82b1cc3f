"""Stacks of quantised matrices as a card likes them: the layout, and the way into it and out of it in plain torch.

A span of 256 consecutive k of a row is 8 groups of 32, and k = 32·j + 4·p + c of it is value p of the element (j, c).
An element holds its 8 values side by side, so that one thread reads 16 bytes, the four elements of a group, and knows
every weight that a scale belongs to. K is padded to whole spans, with scales of 0.
    low   4, 5, 6 bits: int32, four low bits of value p at bit 4p    2, 3 bits: int16, two low bits at 2p
          8 bits: int32, two to an element, values 0-3 and 4-7: [.., j, half, c], a byte each
    high  6 bits: int16, two more bits at 2p    3, 5 bits: uint8, one more bit at p
    scale float16 s [.., K / group], or d of each span; with an offset int32, the offset's bits above the scale's
    sub   int8 sc a unit, int16 sc | m << 8, or uint8 sc | m << 4
`fp8` has no codes: low is float8_e4m3fn [E, N, K], not padded, and scale float32 [E, N].
Example, 4 bits: the first int32 of a row holds k 0, 4, 8, ... 28. What formats mean: `quant/formats.py`.
Shapes: E matrices, N rows, K columns, S spans, j groups, p values, c elements.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FP8", "SPAN", "Codes", "Layout", "Packed"]

SPAN = 256
_ROWS = 4096  # that are moved at a time: temporaries stay small


class Codes(Protocol):
    """`quant.tensor.Codes`: the numbers of a quantised matrix, row by row."""

    @property
    def u_NK(self) -> Tensor: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def offset(self) -> Tensor | None: ...
    @property
    def sub_scale(self) -> Tensor | None: ...
    @property
    def sub_offset(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """`quant.formats.Format` as the kernels see it: `group` k share a float16 scale, or `unit` k one of 8 bits."""

    bits: int
    unit: int
    group: int
    scales: str  # f16, f16_offset, super, super_min, super_nibble, fp8
    label: str = ""

    @property
    def zero(self) -> int:
        """The value of weight 0."""
        return 1 << (self.bits - 1) if self.scales in ("f16", "super") else 0

    @property
    def has_offset(self) -> bool:
        return self.scales in ("f16_offset", "super_min", "super_nibble")

    @property
    def is_super(self) -> bool:
        return self.scales.startswith("super")

    @property
    def units(self) -> int:
        """Scales of 32 k that lie together: 1, or 2 where a scale is of 16."""
        return 2 if self.unit == 16 else 1

    def planes(self) -> tuple[tuple[torch.dtype, int], tuple[torch.dtype, int] | None]:
        """Types of `low` and `high`, and how many elements a span has of each."""
        if self.bits == 8:
            return (torch.int32, 64), None
        high = {6: (torch.int16, 32), 5: (torch.uint8, 32), 3: (torch.uint8, 32)}.get(self.bits)
        return (torch.int32 if self.bits >= 4 else torch.int16, 32), high


FP8 = Layout(8, 0, 0, "fp8", "fp8, a scale a row")


@dataclass(frozen=True, slots=True)
class Packed:
    """E matrices of true size [N, K]."""

    layout: Layout
    shape: tuple[int, int, int]
    low: Tensor
    scale: Tensor
    high: Tensor | None = None
    sub: Tensor | None = None

    @staticmethod
    def empty(layout: Layout, shape: tuple[int, int, int], device: torch.device | str) -> "Packed":
        """Uninitialised memory."""
        E, N, K = shape

        def new(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.empty((E, N, *width), dtype=dtype, device=device)

        if layout.scales == "fp8":
            return Packed(layout, shape, new(torch.float8_e4m3fn, K), new(torch.float32))
        S, (low, high) = -(-K // SPAN), layout.planes()
        outer = SPAN if layout.is_super else layout.group
        subs = {"super": torch.int8, "super_min": torch.int16, "super_nibble": torch.uint8}
        return Packed(
            layout,
            shape,
            new(low[0], S * low[1]),
            new(torch.int32 if layout.has_offset else torch.float16, S * SPAN // outer),
            None if high is None else new(high[0], S * high[1]),
            new(subs[layout.scales], S * SPAN // layout.unit) if layout.is_super else None,
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.low, self.scale, self.high, self.sub) if t is not None)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        E, N, K = self.shape
        return E * N * K

    @property
    def device(self) -> torch.device:
        return self.low.device

    def put(self, e: int, first: int, codes: Codes) -> None:
        """Fill rows first.. of matrix e; the codes are on the stack's device."""
        for i in range(0, len(codes.u_NK), _ROWS):
            at, rows = slice(first + i, first + min(i + _ROWS, len(codes.u_NK))), slice(i, i + _ROWS)
            u = functional.pad(codes.u_NK[rows], (0, -codes.u_NK.shape[1] % SPAN))
            low, high = _planes(self.layout, u.view(len(u), -1, 8, 8, 4))
            self.low[e, at] = low
            if self.high is not None and high is not None:
                self.high[e, at] = high
        at, width = slice(first, first + len(codes.u_NK)), self.scale.shape[2]
        scale = functional.pad(codes.scale.half(), (0, width - codes.scale.shape[1]))
        if codes.offset is not None and self.layout.has_offset:
            offset = functional.pad(codes.offset.half(), (0, width - codes.offset.shape[1]))
            scale = torch.stack((scale, offset), -1).view(torch.int32).squeeze(-1)
        self.scale[e, at] = scale
        if self.sub is not None and codes.sub_scale is not None:
            sub = codes.sub_scale
            if codes.sub_offset is not None and self.layout.has_offset:
                bits = 4 if self.layout.scales == "super_nibble" else 8
                sub = (sub.int() | codes.sub_offset.int() << bits).to(self.sub.dtype)
            self.sub[e, at] = functional.pad(sub, (0, self.sub.shape[2] - sub.shape[1]))

    def put_fp8(self, e: int, first: int, w_NK: Tensor) -> None:
        """Fill rows of an fp8 stack: the largest weight of a row becomes 448, float8's largest number."""
        for i in range(0, len(w_NK), _ROWS):
            w = w_NK[i : i + _ROWS].float()
            scale = (w.abs().amax(1) / 448).clamp_(min=1e-30)
            self.low[e, first + i : first + i + len(w)] = (w / scale[:, None]).clamp_(-448, 448).to(self.low.dtype)
            self.scale[e, first + i : first + i + len(w)] = scale

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows of a single matrix, float32 [T, K]: what an embedding needs."""
        chosen = (None if t is None else t.index_select(1, ids_T) for t in (self.low, self.scale, self.high, self.sub))
        low, scale, high, sub = chosen
        assert low is not None and scale is not None
        return Packed(self.layout, (1, len(ids_T), self.shape[2]), low, scale, high, sub).numbers(0)

    def numbers(self, e: int, first: int = 0, n: int | None = None) -> Tensor:
        """Rows first.. of matrix e, float32 [n, K]: what the kernels' `dequantise` is compared with."""
        rows = slice(first, self.shape[1] if n is None else first + n)
        scale, K = self.scale[e, rows], self.shape[2]
        if self.layout.scales == "fp8":
            return self.low[e, rows].float() * scale[:, None]
        u = _values(self.layout, self.low[e, rows], None if self.high is None else self.high[e, rows])
        factor, shift = _factors(self.layout, scale, None if self.sub is None else self.sub[e, rows])
        w = (u.view(len(u), -1, SPAN).float() - self.layout.zero).view(len(u), -1)
        w *= factor.repeat_interleave(w.shape[1] // factor.shape[1], 1)
        if shift is not None:
            w += shift.repeat_interleave(w.shape[1] // shift.shape[1], 1)
        return w[:, :K]


def _planes(layout: Layout, u: Tensor) -> tuple[Tensor, Tensor | None]:
    """uint8 values [N, S, j, p, c] -> low and high, [N, elements]."""
    N, S = u.shape[:2]
    if layout.bits == 8:
        halves = u.view(N, S, 8, 2, 4, 4).transpose(4, 5).contiguous()
        return halves.view(torch.int32).view(N, -1), None
    low_bits = 4 if layout.bits >= 4 else 2
    (low, _), high = layout.planes()

    def joined(v: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        out = torch.zeros((N, S, 8, 4), dtype=torch.int32, device=u.device)
        for p in range(8):
            out |= v[..., p, :].int() << width * p
        return out.to(dtype).view(N, -1)

    first = joined(u & (1 << low_bits) - 1, low_bits, low)
    return first, None if high is None else joined(u >> low_bits, layout.bits - low_bits, high[0])


def _values(layout: Layout, low: Tensor, high: Tensor | None) -> Tensor:
    """The inverse: values [N, S·256]."""
    N = len(low)
    if layout.bits == 8:
        return low.contiguous().view(torch.uint8).view(N, -1, 8, 2, 4, 4).transpose(4, 5).reshape(N, -1)
    p = torch.arange(8, dtype=torch.int32, device=low.device)[:, None]
    low_bits = 4 if layout.bits >= 4 else 2
    u = low.int().view(N, -1, 1, 4) >> low_bits * p & (1 << low_bits) - 1
    if high is not None:
        bits = layout.bits - low_bits
        u |= (high.int().view(N, -1, 1, 4) >> bits * p & (1 << bits) - 1) << low_bits
    return u.view(N, -1)


def _factors(layout: Layout, scale: Tensor, sub: Tensor | None) -> tuple[Tensor, Tensor | None]:
    offset = None
    if layout.has_offset:
        both = scale.contiguous().view(torch.float16).view(*scale.shape, 2).float()
        scale, offset = both[..., 0], both[..., 1]
    scale = scale.float()
    if sub is None:
        return scale, offset
    per_span = SPAN // layout.unit
    d = scale.repeat_interleave(per_span, 1)
    if offset is None:
        return d * sub.float(), None
    bits = 4 if layout.scales == "super_nibble" else 8
    sc, m = sub.int() & (1 << bits) - 1, sub.int() >> bits & (1 << bits) - 1
    return d * sc.float(), -(offset.repeat_interleave(per_span, 1) * m.float())
