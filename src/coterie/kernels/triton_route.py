"""The router in one Triton kernel: logits, the K best, their softmax; `reference.route` is the specification.

Logits are float32 sums of float32 products: close ones must not change places. A few rows are a program each, which
reads the router's weights as a stream; many rows are taken 16 at a time, as a product of matrices.
Shapes: T tokens, D model width, E experts, K experts a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["route"]

_FEW = 64  # rows
_ROWS = 16  # of a program where there are many


@triton.jit
def _choose(
    logits, row, is_row, ids_ptr, weights_ptr, E: tl.constexpr, K: tl.constexpr, RENORMALISE: tl.constexpr,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """logits [ROWS, EXPERTS] -> ids and weights: the largest, K times, the lowest id among equals."""
    expert, slot = tl.arange(0, EXPERTS)[None, :], tl.arange(0, SLOTS)[None, :]
    is_free = (expert < E) & (row[:, None] >= 0)
    ids = tl.zeros([ROWS, SLOTS], tl.int32)
    kept = tl.full([ROWS, SLOTS], float("-inf"), tl.float32)
    for k in tl.static_range(K):
        best = tl.max(tl.where(is_free, logits, float("-inf")), 1)[:, None]
        found = tl.min(tl.where(is_free & (logits == best), expert, EXPERTS), 1)[:, None]
        found = tl.minimum(found, E - 1)  # NaN equals nothing
        ids = tl.where(slot == k, found, ids)
        kept = tl.where(slot == k, best, kept)
        is_free = is_free & (expert != found)
    top = tl.max(kept, 1)[:, None]
    if RENORMALISE:
        total = tl.sum(tl.where(slot < K, tl.exp(kept - top), 0.0), 1)[:, None]
    else:
        total = tl.sum(tl.where(expert < E, tl.exp(logits - top), 0.0), 1)[:, None]
    at = row[:, None] * K + slot
    is_out = is_row[:, None] & (slot < K)
    tl.store(ids_ptr + at, ids, is_out)
    tl.store(weights_ptr + at, tl.exp(kept - top) / total, is_out)


@triton.jit
def _few_kernel(
    x_ptr, weight_ptr, ids_ptr, weights_ptr, logits_ptr, D, E: tl.constexpr, K: tl.constexpr,
    RENORMALISE: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, expert, at = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS), tl.arange(0, BLOCK)
    sums = tl.zeros([EXPERTS, BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        is_in = start + at < D
        x = tl.load(x_ptr + row * D + start + at, is_in, 0.0).to(tl.float32)
        is_weight = (expert[:, None] < E) & is_in[None, :]
        sums += x[None, :] * tl.load(weight_ptr + expert[:, None] * D + start + at[None, :], is_weight, 0.0)
    logits = tl.sum(sums, 1)
    tl.store(logits_ptr + row * E + expert, logits, expert < E)
    rows = row + tl.zeros([1], tl.int64)
    _choose(logits[None, :], rows, rows >= 0, ids_ptr, weights_ptr, E, K, RENORMALISE, 1, EXPERTS, SLOTS)


@triton.jit
def _many_kernel(
    x_ptr, weight_ptr, ids_ptr, weights_ptr, logits_ptr, T, D, E: tl.constexpr, K: tl.constexpr,
    RENORMALISE: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert, at, is_row = tl.arange(0, EXPERTS), tl.arange(0, BLOCK), row < T
    logits = tl.zeros([ROWS, EXPERTS], tl.float32)
    for start in range(0, D, BLOCK):
        is_in = start + at < D
        x = tl.load(x_ptr + row[:, None] * D + start + at[None, :], is_row[:, None] & is_in[None, :], 0.0)
        is_weight = (expert[None, :] < E) & is_in[:, None]
        weight = tl.load(weight_ptr + expert[None, :] * D + start + at[:, None], is_weight, 0.0)
        logits = tl.dot(x.to(tl.float32), weight, logits, input_precision="ieee")
    is_logit = is_row[:, None] & (expert[None, :] < E)
    tl.store(logits_ptr + row[:, None] * E + expert[None, :], logits, is_logit)
    _choose(logits, row, is_row, ids_ptr, weights_ptr, E, K, RENORMALISE, ROWS, EXPERTS, SLOTS)


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """ids int32 [T, K], best first, weights float32 [T, K], logits float32 [T, E]."""
    (T, D), E = x_TD.shape, len(weight_ED)
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == torch.float32 and top_k <= E
    ids_TK = torch.empty((T, top_k), dtype=torch.int32, device=x_TD.device)
    weights_TK = torch.empty((T, top_k), dtype=torch.float32, device=x_TD.device)
    logits_TE = torch.empty((T, E), dtype=torch.float32, device=x_TD.device)
    slots = triton.next_power_of_2(top_k)
    if T > _FEW:
        experts = max(16, triton.next_power_of_2(E))
        _many_kernel[(triton.cdiv(T, _ROWS),)](
            x_TD, weight_ED, ids_TK, weights_TK, logits_TE, T, D, E, top_k, renormalise,
            ROWS=_ROWS, EXPERTS=experts, SLOTS=slots, BLOCK=64, num_warps=4,
        )  # fmt: skip
    elif T:
        experts = triton.next_power_of_2(E)
        _few_kernel[(T,)](
            x_TD, weight_ED, ids_TK, weights_TK, logits_TE, D, E, top_k, renormalise,
            EXPERTS=experts, SLOTS=slots, BLOCK=min(triton.next_power_of_2(D), max(32, 8192 // experts)), num_warps=8,
        )  # fmt: skip
    return ids_TK, weights_TK, logits_TE
