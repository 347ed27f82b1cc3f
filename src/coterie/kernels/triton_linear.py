"""x · W^T where W is packed: a row or two read the weights by themselves, some rows share a tile, many a plain copy.

Up to 64 rows the time is that of reading the weights, so each is made plain in registers, once. With more the product
itself takes the time, and the libraries' is the fastest; the plain copy lives as long as the call.
Shapes: T rows, K columns of x, N rows of the matrix.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from coterie.kernels import tiles
from coterie.kernels.packed import Packed
from coterie.kernels.triton_dots import arguments, dots
from coterie.kernels.triton_grouped_packed import add_span
from coterie.kernels.triton_packed import arguments as packed_arguments
from coterie.kernels.triton_packed import plain

__all__ = ["linear"]

_FEW, _SOME = 2, 64  # rows that read the weights by themselves; that share tiles


@triton.jit
def _few_kernel(
    x_ptr, y_ptr, low_ptr, high_ptr, scale_ptr, sub_ptr, n_spans, K, N, BITS: tl.constexpr, UNIT: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    t, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = dots(
        low_ptr, high_ptr, scale_ptr, sub_ptr, x_ptr + t * K, tl.minimum(n, N - 1).to(tl.int64), n_spans, K,
        BITS, UNIT, GROUP, SCALES, BLOCK, WIDE, EVEN, EXACT,
    )  # fmt: skip
    tl.store(y_ptr + t * N + n, y.to(y_ptr.dtype.element_ty), n < N)


@triton.jit
def _some_kernel(
    x_ptr, y_ptr, low_ptr, high_ptr, scale_ptr, sub_ptr, T, K: tl.constexpr, N, BITS: tl.constexpr,
    UNIT: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    SWAP: tl.constexpr,
):  # fmt: skip
    n_spans: tl.constexpr = (K + 255) // 256
    n, t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    w_row, x_row = tl.minimum(n, N - 1).to(tl.int64)[:, None], tl.minimum(t, T - 1)[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_T] if SWAP else [BLOCK_T, BLOCK_N], tl.float32)
    for span in range(n_spans):
        acc = add_span(
            acc, x_ptr, x_row, low_ptr, high_ptr, scale_ptr, sub_ptr, w_row, span, n_spans, K, SWAP, BITS, UNIT, GROUP,
            SCALES,
        )  # fmt: skip
    if SWAP:
        acc = tl.trans(acc)
    if SCALES == "fp8":
        acc *= tl.trans(tl.load(scale_ptr + w_row))
    tl.store(y_ptr + t[:, None] * N + n[None, :], acc.to(y_ptr.dtype.element_ty), (t < T)[:, None] & (n < N)[None, :])


def linear(x_TK: Tensor, packed: Packed) -> Tensor:
    """x · W^T, [T, N], for the one matrix of a stack: see `Packed.numbers`."""
    (T, K), (E, N, width) = x_TK.shape, packed.shape
    assert x_TK.is_contiguous() and E == 1 and width == K
    if T > _SOME:
        return functional.linear(x_TK, plain(packed, 0, 0, torch.empty((N, K), dtype=x_TK.dtype, device=x_TK.device)))
    y_TN = torch.empty((T, N), dtype=x_TK.dtype, device=x_TK.device)
    if 0 < T <= _FEW:
        block, warps = (8, 1) if N >= 1 << 14 else (4, 2)
        _few_kernel[(T, triton.cdiv(N, block))](
            x_TK, y_TN, K=K, N=N, BLOCK=block, num_warps=warps, **arguments(packed, x_TK, warps)
        )
    elif T:
        block, swap = (32, False) if T <= 16 and N < 1 << 14 else (64, True)
        is_small = tiles.card_of(x_TK.device).shared < 160_000  # of 8 bits, 64 rows take 104,448 bytes in three stages
        _some_kernel[(triton.cdiv(N, block),)](
            x_TK, y_TN, T=T, K=K, N=N, BLOCK_T=max(16, triton.next_power_of_2(T)), BLOCK_N=block, SWAP=swap,
            num_warps=4 if swap else 2, num_stages=2 if is_small else 3, **packed_arguments(packed),
        )  # fmt: skip
    return y_TN
