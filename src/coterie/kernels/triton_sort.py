"""Pairs (token, slot) put in the order of their experts, on the card: what grouped products and their sum need.

Example, ids [[2, 0], [0, -1]] of 3 experts: pairs 0..3 have experts 2, 0, 0, -1, so `pair` is [1, 2, 0, 3], `place`,
its inverse, [2, 0, 1, 3], and `offsets` [0, 2, 2, 3]: from offsets[3] on lie the unused ones.
Shapes: T tokens, K slots, N pairs, E experts, D model width.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Sorted", "combine", "sort_pairs"]

_MOST = 1 << 16  # pairs that one launch sorts: each of its programs counts all of them
_WIDE = 4096  # pairs counted at a time
_CELLS = 16384  # of the table pairs x experts that a program ranks by


class Sorted(NamedTuple):
    """Stable by expert; all int32."""

    pair_N: Tensor  # of each place, its pair: t * K + slot
    place_N: Tensor  # of each pair, its place
    offsets: Tensor  # [E + 1] first place of each expert; the last is the number of pairs in use


@triton.jit
def _sort_kernel(
    ids_ptr, pair_ptr, place_ptr, offsets_ptr, N, E: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A program ranks CHUNK pairs among all; unused ones and what lies beyond N count as expert E."""
    begin = tl.program_id(0) * CHUNK
    before, total = tl.zeros([BINS], tl.int32), tl.zeros([BINS], tl.int32)
    for start in range(0, N, WIDE):
        i = start + tl.arange(0, WIDE)
        e = tl.load(ids_ptr + i, i < N, E).to(tl.int32)
        e = tl.where(e < 0, E, e)
        total += tl.histogram(e, BINS)
        before += tl.histogram(e, BINS, i < begin)
    bin, i = tl.arange(0, BINS), begin + tl.arange(0, CHUNK)
    offset = tl.cumsum(total, 0) - total
    e = tl.load(ids_ptr + i, i < N, E).to(tl.int32)
    e = tl.where(e < 0, E, e)
    is_its = (e[:, None] == bin[None, :]).to(tl.int32)
    rank = tl.cumsum(is_its, 0) - 1 + (offset + before)[None, :]
    place = tl.sum(is_its * rank, 1)
    tl.store(place_ptr + i, place, i < N)
    tl.store(pair_ptr + place, i, i < N)
    if begin == 0:
        tl.store(offsets_ptr + bin, offset, bin <= E)


@triton.jit
def _combine_kernel(
    out_ptr, place_ptr, used_ptr, weights_ptr, y_ptr, N, D, K: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n_used, is_in = tl.load(used_ptr), at < D
    y = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        place = tl.load(place_ptr + token * K + slot)
        is_read = is_in & (place < n_used)
        out = tl.zeros([BLOCK], tl.float32)
        for part in tl.static_range(PARTS):
            row = part * tl.cast(N, tl.int64) + place
            out += tl.load(out_ptr + row * D + at, is_read, 0.0).to(tl.float32)
        weight = tl.load(weights_ptr + token * K + slot, place < n_used, 0.0)
        y += weight * out
    tl.store(y_ptr + token * D + at, y.to(y_ptr.dtype.element_ty), is_in)


def sort_pairs(ids_TK: Tensor, n_experts: int) -> Sorted:
    """ids int32 or int64, -1 where a slot is unused."""
    assert ids_TK.is_contiguous()
    N, device = ids_TK.numel(), ids_TK.device
    if N > _MOST:
        return _sorted_by_torch(ids_TK, n_experts)
    pair_N, place_N = (torch.empty(N, dtype=torch.int32, device=device) for _ in range(2))
    offsets = torch.empty(n_experts + 1, dtype=torch.int32, device=device)
    bins = max(16, triton.next_power_of_2(n_experts + 1))
    most = triton.next_power_of_2(max(N, 16))
    chunk = min(most, max(16, _CELLS // bins))
    _sort_kernel[(max(1, triton.cdiv(N, chunk)),)](
        ids_TK, pair_N, place_N, offsets, N, n_experts, BINS=bins, CHUNK=chunk, WIDE=min(most, _WIDE),
        num_warps=8 if chunk * bins >= 4096 else 4,
    )  # fmt: skip
    return Sorted(pair_N, place_N, offsets)


def _sorted_by_torch(ids_TK: Tensor, n_experts: int) -> Sorted:
    flat = ids_TK.flatten().int()
    sorted_N, pair_N = torch.where(flat < 0, n_experts, flat).sort(stable=True)
    bounds = torch.arange(n_experts + 1, dtype=torch.int32, device=flat.device)
    order = torch.arange(len(flat), dtype=torch.int32, device=flat.device)
    place_N = torch.empty_like(order).scatter_(0, pair_N, order)
    return Sorted(pair_N.int(), place_N, torch.searchsorted(sorted_N, bounds, out_int32=True))


def combine(out: Tensor, sorted_: Sorted, weights_TK: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ over slots, in order and in float32, of weight · output -> [T, D]; outputs [parts, N, D] lie by place.

    See `reference.combine`; parts of one output are added first, unused slots are not read.
    """
    (T, K), (parts, N, D) = weights_TK.shape, out.shape
    assert out.is_contiguous() and weights_TK.is_contiguous() and N == T * K
    y_TD = torch.empty((T, D), dtype=dtype, device=out.device)
    block = min(2048, triton.next_power_of_2(D))
    if T:
        _combine_kernel[(T, triton.cdiv(D, block))](
            out, sorted_.place_N, sorted_.offsets[-1:], weights_TK, y_TD, N, D, K, parts, BLOCK=block,
            num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
    return y_TD
