"""Weights of 2 to 8 bits in Triton: made plain a tile at a time, exactly; `packed.py` has the layout and the twin.

A value becomes a float without a conversion: its bits are put into the fraction of 256, and 256 is taken off again.
Products of a value and its scale have at most 24 bits, so what is rounded is only the sum with an offset.
Shapes: E matrices, N rows, K columns, S spans of 256 columns, j groups of 32, p values of an element c.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.packed import SPAN, Packed

__all__ = ["Packed", "arguments", "dequantise", "factors", "magic", "n_spans", "plain", "rows", "values"]


def arguments(packed: Packed) -> dict[str, Any]:
    """What kernels take that read a stack through the helpers here, by the names of their parameters."""
    layout = packed.layout
    assert all(t.is_contiguous() for t in packed.tensors)
    return {
        "low_ptr": packed.low,
        "high_ptr": packed.high,
        "scale_ptr": packed.scale,
        "sub_ptr": packed.sub,
        "BITS": layout.bits,
        "UNIT": layout.unit,
        "GROUP": layout.group,
        "SCALES": layout.scales,
    }


def n_spans(packed: Packed) -> int:
    """Spans of a row."""
    return -(-packed.shape[2] // SPAN)


@triton.jit
def _half(bits):
    """The lower 16 bits as a float16, in float32."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def factors(scale_ptr, sub_ptr, row, n_spans, unit, UNIT: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr):
    """What values of a row's unit (the number k // UNIT) are multiplied by, and what is added; 0 where nothing is."""
    if SCALES == "f16":
        at = row * (n_spans * (256 // GROUP)) + unit // (GROUP // UNIT)
        factor = tl.load(scale_ptr + at).to(tl.float32)
        return factor, factor * 0
    elif SCALES == "f16_offset":
        at = row * (n_spans * (256 // GROUP)) + unit // (GROUP // UNIT)
        both = tl.load(scale_ptr + at)
        return _half(both), _half(both >> 16)
    else:
        both = tl.load(scale_ptr + row * n_spans + unit // (256 // UNIT))
        sub = tl.load(sub_ptr + row * (n_spans * (256 // UNIT)) + unit)
        if SCALES == "super":
            factor = both.to(tl.float32) * sub.to(tl.float32)
            return factor, factor * 0
        else:
            BIT: tl.constexpr = 4 if SCALES == "super_nibble" else 8
            MASK: tl.constexpr = (1 << BIT) - 1
            wide = sub.to(tl.int32)
            factor = _half(both) * (wide & MASK).to(tl.float32)
            return factor, -(_half(both >> 16) * ((wide >> BIT) & MASK).to(tl.float32))


@triton.jit
def magic():
    """The bits of the float 256, in a way that the compiler cannot see through.

    With two constants, (a & b) | c would take two instructions a value instead of one. Grids have no third dimension.
    """
    return 0x437FFFFF + tl.num_programs(2)


@triton.jit
def values(low, high, p, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Values p of elements minus ZERO, in float32; of 8 bits, p counts within a half.

    p is a tensor that the elements broadcast with, or a number.
    """
    BIT: tl.constexpr = 8 if BITS == 8 else (4 if BITS >= 4 else 2)
    bits = (((low.to(tl.int32) >> (BIT * p)) << 15) & (((1 << BIT) - 1) << 15)) | magic()
    if BITS == 6:  # `^` is what `|` would give, but stays apart from it
        bits ^= ((high.to(tl.int32) >> (2 * p)) << 19) & (3 << 19)
    elif BITS == 5:
        bits ^= ((high.to(tl.int32) >> p) << 19) & (1 << 19)
    elif BITS == 3:
        bits ^= ((high.to(tl.int32) >> p) << 17) & (1 << 17)
    return bits.to(tl.float32, bitcast=True) - (256.0 + ZERO)


@triton.jit
def dequantise(
    low_ptr, high_ptr, scale_ptr, sub_ptr, rows, n_spans, span, half, K, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Weights float32 [BLOCK_N, 128] of k = span·256 + half·128 + 0..127, in that order; 0 from K on.

    `rows` int64 [BLOCK_N]: e·N + n of each row; all must be rows that are there (clamp, and mask what is stored).
    `n_spans` is ceil(K / 256). See `Packed.numbers`.
    """
    if SCALES == "fp8":
        k = span * 256 + half * 128 + tl.arange(0, 128)
        w = tl.load(low_ptr + rows[:, None] * K + k[None, :], k[None, :] < K, 0.0).to(tl.float32)
        return w * tl.load(scale_ptr + rows)[:, None]
    else:
        UNITS: tl.constexpr = 32 // UNIT
        ZERO: tl.constexpr = (1 << (BITS - 1)) if (SCALES == "f16" or SCALES == "super") else 0
        j, c = 4 * half + tl.arange(0, 4), tl.arange(0, 4)
        part, p = tl.arange(0, 2), tl.arange(0, 4)  # value 4·part + p
        shift = (4 * part[:, None] + p[None, :])[None, None, :, :, None]
        at = rows[:, None, None] * (n_spans * 32) + span * 32 + j[None, :, None] * 4 + c[None, None, :]
        if BITS == 8:
            halves = (
                2 * rows[:, None, None, None] * (n_spans * 32)
                + span * 64
                + (j[None, :, None, None] * 8 + part[None, None, :, None] * 4 + c[None, None, None, :])
            )
            w = values(tl.load(low_ptr + halves)[:, :, :, None, :], 0, p[None, None, None, :, None], BITS, ZERO)
        else:
            low = tl.load(low_ptr + at)[:, :, None, None, :]
            if BITS == 4 or BITS == 2:
                w = values(low, 0, shift, BITS, ZERO)
            else:
                w = values(low, tl.load(high_ptr + at)[:, :, None, None, :], shift, BITS, ZERO)
        unit = (span * 8 + j) * UNITS
        if UNITS == 1:
            factor, offset = factors(scale_ptr, sub_ptr, rows[:, None], n_spans, unit[None, :], UNIT, GROUP, SCALES)
            factor, offset = factor[:, :, None, None, None], offset[:, :, None, None, None]
        else:
            both = (unit[:, None] + part[None, :])[None, :, :]
            factor, offset = factors(scale_ptr, sub_ptr, rows[:, None, None], n_spans, both, UNIT, GROUP, SCALES)
            factor, offset = factor[:, :, :, None, None], offset[:, :, :, None, None]
        w *= factor
        if SCALES == "f16_offset" or SCALES == "super_min" or SCALES == "super_nibble":
            w += offset
        return tl.reshape(w, [BLOCK_N, 128])


@triton.jit
def _plain_kernel(
    low_ptr, high_ptr, scale_ptr, sub_ptr, out_ptr, first, N, n_spans, K, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A strip of rows, plain."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (first + tl.minimum(n, N - 1)).to(tl.int64)
    span, half = tl.program_id(1) // 2, tl.program_id(1) % 2
    w = dequantise(
        low_ptr, high_ptr, scale_ptr, sub_ptr, rows, n_spans, span, half, K, BITS, UNIT, GROUP, SCALES, BLOCK_N
    )
    k = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out_ptr + at, w.to(out_ptr.dtype.element_ty), (n < N)[:, None] & (k < K)[None, :])


def plain(packed: Packed, e: int, first: int, out_NK: Tensor) -> Tensor:
    """Rows first.. of matrix e into `out_NK`, in its type: see `Packed.numbers`."""
    (_, N, K), n = packed.shape, len(out_NK)
    assert out_NK.is_contiguous() and out_NK.shape[1] == K and first + n <= N
    _plain_kernel[(triton.cdiv(n, 32), triton.cdiv(K, 128))](
        **arguments(packed), out_ptr=out_NK, first=e * N + first, N=n, n_spans=n_spans(packed), K=K, BLOCK_N=32
    )
    return out_NK


@triton.jit
def _rows_kernel(
    low_ptr, high_ptr, scale_ptr, sub_ptr, ids_ptr, out_ptr, n_spans, K, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    t, half = tl.program_id(0), tl.program_id(1)
    row = tl.load(ids_ptr + t + tl.arange(0, 1)).to(tl.int64)
    w = dequantise(
        low_ptr, high_ptr, scale_ptr, sub_ptr, row, n_spans, half // 2, half % 2, K, BITS, UNIT, GROUP, SCALES, 1
    )
    k = (half * 128 + tl.arange(0, 128))[None, :]
    tl.store(out_ptr + t.to(tl.int64) * K + k, w.to(out_ptr.dtype.element_ty), k < K)


def rows(packed: Packed, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a single matrix, [T, K]: what an embedding needs. The ids are rows that are there."""
    T, K = len(ids_T), packed.shape[2]
    assert packed.shape[0] == 1
    out_TK = torch.empty((T, K), dtype=dtype, device=packed.device)
    if T:
        _rows_kernel[(T, triton.cdiv(K, 128))](
            **arguments(packed), ids_ptr=ids_T.contiguous(), out_ptr=out_TK, n_spans=n_spans(packed), K=K, num_warps=1
        )
    return out_TK
