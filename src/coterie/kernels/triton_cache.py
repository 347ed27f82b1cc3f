"""Parts of the kernels of attention: rows turned, keys and values as the cache keeps them, stretches merged.

`reference.rotate` and `pages.Pages` are the specification. A row is turned in float32 and rounded once.

Where the keys of some queries are split among programs, each program leaves its sum of weighted values, the largest
score and the sum of weights; the one that comes last merges them in order, so the result does not depend on who that
is. Shapes: Q queries of a program, P head width.
"""

import triton
import triton.language as tl

__all__ = ["arrived", "merge", "operand", "partner", "quantised", "turned"]


@triton.jit
def operand(x, dtype: tl.constexpr):
    """Keys or values as an operand of a product; int8 goes by float32 since the interpreter knows no other way."""
    return x.to(tl.float32).to(dtype) if x.dtype == tl.int8 else x.to(dtype)


@triton.jit
def partner(d, P: tl.constexpr):
    """The column that d turns with: d + P/2 or d - P/2."""
    return tl.where(d < P // 2, d + P // 2, d - P // 2)


@triton.jit
def turned(x, other, cos, sin):
    """x of some type, `other` the partners of its columns -> of the same type; sin has the signs."""
    return (x.to(tl.float32) * cos + other.to(tl.float32) * sin).to(x.dtype)


@triton.jit
def quantised(x):
    """Rows [R, P], 0 beyond the head's width -> numbers of int8 in float32, and scales [R]: see `pages._quantised`."""
    x = x.to(tl.float32)
    largest = tl.max(tl.abs(x), 1)
    largest = tl.where(tl.max((x != x).to(tl.int32), 1) > 0, float("nan"), largest)
    is_usable = (largest >= 1e-30) & (largest < float("inf"))
    top = tl.full(largest.shape, 127.0, tl.float32)
    factor = tl.where(is_usable, tl.div_rn(top, tl.where(is_usable, largest, 1.0)), 0.0)
    number = x * factor[:, None]
    number = tl.where(number == number, number, 0.0)  # infinity times 0
    number = (number + 12582912.0) - 12582912.0  # 1.5 · 2^23: rounds half to even
    return number, tl.div_rn(largest, top)


@triton.jit
def arrived(
    part_ptr, weight_ptr, arrivals_ptr, pair, split, n_splits, n_used, top, total, acc, Q: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Leave what a stretch of keys gave the queries of a pair; whether it is the last of `n_used` to do so."""
    query, d = tl.arange(0, acc.shape[0]), tl.arange(0, acc.shape[1])
    rows = (pair * n_splits + split) * Q + query
    tl.store(part_ptr + rows[:, None] * P + d[None, :], acc, (query < Q)[:, None] & (d < P)[None, :])
    tl.store(weight_ptr + rows * 2, top, query < Q)
    tl.store(weight_ptr + rows * 2 + 1, total, query < Q)
    tl.debug_barrier()  # all of this program's stores come before its arrival
    is_last = tl.atomic_add(arrivals_ptr + pair, 1, sem="acq_rel") == n_used - 1
    if is_last:
        tl.store(arrivals_ptr + pair, 0)
    return is_last


@triton.jit
def merge(
    part_ptr, weight_ptr, out_ptr, at, n_used, to, is_out, Q: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The stretches from `at` on, summed up into rows `to` of the output."""
    query, d = tl.arange(0, to.shape[0]), tl.arange(0, WIDTH)
    is_in = is_out[:, None] & (d < P)[None, :]
    top = tl.full([to.shape[0]], -1e30, tl.float32)
    total = tl.zeros([to.shape[0]], tl.float32)
    acc = tl.zeros([to.shape[0], WIDTH], tl.float32)
    for split in tl.range(0, n_used, loop_unroll_factor=4):
        rows = (at + split) * Q + query
        new = tl.load(weight_ptr + rows * 2, is_out, 0.0, cache_modifier=".cg")
        weight = tl.load(weight_ptr + rows * 2 + 1, is_out, 0.0, cache_modifier=".cg")
        part = tl.load(part_ptr + rows[:, None] * P + d[None, :], is_in, 0.0, cache_modifier=".cg")
        higher = tl.maximum(top, new)
        old, new = tl.exp2(top - higher), tl.exp2(new - higher)
        acc = acc * old[:, None] + part * new[:, None]
        total = total * old + weight * new
        top = higher
    tl.store(out_ptr + to[:, None] * P + d[None, :], (acc / total[:, None]).to(out_ptr.dtype.element_ty), is_in)
