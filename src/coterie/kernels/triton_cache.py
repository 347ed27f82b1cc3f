"""Parts of the kernels of attention: turning rows, and keys and values as the cache keeps them.

`reference.rotate` and `pages.Pages` are the specification. A row is turned in float32 and rounded once.
Shapes: P head width.
"""

import triton
import triton.language as tl

__all__ = ["operand", "partner", "quantised", "turned"]


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
