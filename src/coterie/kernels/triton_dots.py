"""Dot products of one row of numbers with rows of weights, plain or packed: what reading weights once comes down to.

A thread reads 16 bytes of a row at a time and keeps one partial sum a row; the sums are joined at the end. Packed
values are used as the floats 256 + u or 16 + u that their bits make without a conversion, and what that adds is taken
off again a group at a time, with the group's scale; with float32 inputs it is taken off each value, exactly.
Shapes: R rows of weights, K columns, j groups of 32 columns, c elements of a group (`packed.py`).
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.packed import Packed
from coterie.kernels.triton_packed import arguments as packed_arguments
from coterie.kernels.triton_packed import factors, magic

__all__ = ["arguments", "dots"]

_MOST = 1024  # columns at a time


def arguments(weights: Tensor | Packed, x: Tensor, warps: int) -> dict[str, Any]:
    """What `dots` takes of a stack [E, N, K] or of a matrix, in a program of so many warps, by its parameters' names.

    Each warp reads 512 bytes of a row at a time, if the row has so many for all of them.
    """
    if isinstance(weights, Packed):
        found, K = packed_arguments(weights), weights.shape[2]
    else:
        assert weights.is_contiguous()
        found, K = {"low_ptr": weights, "high_ptr": None, "scale_ptr": None, "sub_ptr": None}, weights.shape[-1]
        found |= {"BITS": 0, "UNIT": 0, "GROUP": 0, "SCALES": "plain"}
    n_spans = triton.cdiv(K, 256)
    if found["SCALES"] in ("plain", "fp8"):
        wide = min(_MOST, max(64, triton.next_power_of_2(K)))
        is_even = K % wide == 0
    else:
        wide, is_even = 256 * next(s for s in (4 * warps, 4, 2, 1) if n_spans % s == 0), K % 256 == 0
    return {
        **found,
        "n_spans": n_spans,
        "WIDE": wide,
        "EVEN": is_even,
        "EXACT": x.element_size() == 4,
    }


@triton.jit
def _raw(low, high, p: tl.constexpr, BITS: tl.constexpr):
    """Value p of elements plus 256, or 16 of odd ones of 4 bits, in float32.

    Of 8 bits, `high` are the elements of values 4 to 7.
    """
    if BITS == 8 and p >= 4:
        low = high
    BIT: tl.constexpr = 8 if BITS == 8 else (4 if BITS >= 4 else 2)
    IS_UPPER: tl.constexpr = BITS == 4 and p % 2 == 1  # it shares its shift with the value before it
    TO: tl.constexpr = 19 if IS_UPPER else 15
    BY: tl.constexpr = TO - BIT * (p % 4 if BITS == 8 else p)
    bits = low.to(tl.int32)
    bits = bits << BY if BY >= 0 else bits >> -BY
    bits = (bits & (((1 << BIT) - 1) << TO)) | (magic() - 0x02000000 if IS_UPPER else magic())
    if BITS == 6 or BITS == 5 or BITS == 3:
        MORE: tl.constexpr = BITS - BIT
        FAR: tl.constexpr = 15 + BIT - MORE * p
        extra = high.to(tl.int32)
        extra = extra << FAR if FAR >= 0 else extra >> -FAR
        bits ^= extra & (((1 << MORE) - 1) << (15 + BIT))  # what `|` would give, in one instruction less
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _x(x_ptr, k, more: tl.constexpr, K, EVEN: tl.constexpr):
    x = tl.load(x_ptr + k + more) if EVEN else tl.load(x_ptr + k + more, k < K - more, 0.0)
    return x.to(tl.float32)


@triton.jit
def _plain_dots(
    low_ptr, scale_ptr, x_ptr, rows, K, SCALES: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    VEC: tl.constexpr = 16 if SCALES == "fp8" else (4 if low_ptr.dtype.element_ty == tl.float32 else 8)
    k = (tl.arange(0, WIDE // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :])[:, None, :]
    at = rows[None, :, None] * K + k
    acc = tl.zeros([WIDE // VEC, R], tl.float32)
    for start in range(0, K, WIDE):
        if EVEN:
            x = tl.load(x_ptr + start + k)
            w = tl.load(low_ptr + start + at, eviction_policy="evict_first")
        else:
            x = tl.load(x_ptr + start + k, start + k < K, 0.0)
            w = tl.load(low_ptr + start + at, start + k < K, 0.0, eviction_policy="evict_first")
        acc += tl.sum(w.to(tl.float32) * x.to(tl.float32), 2)
    total = tl.sum(acc, 0)
    return total * tl.load(scale_ptr + rows) if SCALES == "fp8" else total


@triton.jit
def _packed_dots(
    low_ptr, high_ptr, scale_ptr, sub_ptr, x_ptr, rows, n_spans, K, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    J: tl.constexpr = WIDE // 32
    UNITS: tl.constexpr = 32 // UNIT
    ZERO: tl.constexpr = (1 << (BITS - 1)) if (SCALES == "f16" or SCALES == "super") else 0
    HAS_SHIFT: tl.constexpr = not (SCALES == "f16" or SCALES == "super")
    one = tl.num_programs(2)  # unknown to the compiler, which else would give a thread the scales of several groups
    c = tl.arange(0, 4)
    acc = tl.zeros([J, R, 1], tl.float32)
    for start in range(0, n_spans * 8, J):
        j = start + tl.arange(0, J)
        if BITS == 8:
            at = rows[None, :, None] * (n_spans * 64) + (j[:, None] * 8 + c[None, :])[:, None, :]
            low = tl.load(low_ptr + at, eviction_policy="evict_first")
            high = tl.load(low_ptr + at + 4, eviction_policy="evict_first")
        else:
            at = rows[None, :, None] * (n_spans * 32) + (j[:, None] * 4 + c[None, :])[:, None, :]
            low = tl.load(low_ptr + at, eviction_policy="evict_first")
            high = low if BITS == 4 or BITS == 2 else tl.load(high_ptr + at, eviction_policy="evict_first")
        k = (j[:, None] * 32 + c[None, :])[:, None, :]
        for part in tl.static_range(UNITS):
            sums = tl.zeros([J, R, 4], tl.float32)
            lower = tl.zeros([J, 1, 4], tl.float32)  # sums of x
            upper = tl.zeros([J, 1, 4], tl.float32)
            for q in tl.static_range(8 // UNITS):
                x = _x(x_ptr, k, 4 * (part * (8 // UNITS) + q), K, EVEN)
                raw = _raw(low, high, part * (8 // UNITS) + q, BITS)
                if BITS == 4 and q % 2 == 1:
                    sums += (raw - (16.0 + ZERO) if EXACT else raw) * x
                    upper += x
                else:
                    sums += (raw - (256.0 + ZERO) if EXACT else raw) * x
                    lower += x
            total = tl.sum(sums, 2)[:, :, None]
            unit = (j * one * UNITS + part)[:, None, None]
            factor, shift = factors(scale_ptr, sub_ptr, rows[None, :, None], n_spans, unit, UNIT, GROUP, SCALES)
            if not EXACT:
                total -= tl.sum(lower * (256.0 + ZERO) + upper * (16.0 + ZERO), 2)[:, :, None]
            acc += factor * total
            if HAS_SHIFT:
                acc += shift * tl.sum(lower + upper, 2)[:, :, None]
    return tl.sum(tl.reshape(acc, [J, R]), 0)


@triton.jit
def dots(
    low_ptr, high_ptr, scale_ptr, sub_ptr, x_ptr, rows, n_spans, K, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """float32 [R]: x [K] times each of these rows, int64 numbers e·N + n of rows that are there."""
    if SCALES == "plain" or SCALES == "fp8":
        return _plain_dots(low_ptr, scale_ptr, x_ptr, rows, K, SCALES, R, WIDE, EVEN)
    else:
        return _packed_dots(
            low_ptr, high_ptr, scale_ptr, sub_ptr, x_ptr, rows, n_spans, K, BITS, UNIT, GROUP, SCALES, R, WIDE, EVEN,
            EXACT,
        )  # fmt: skip
