"""Triton kernels of training between the matrix products; `training_reference` is their specification.

A row is read once wherever that can be: gradients are written over what they come from. Sums are float32 and in an
order that does not change from run to run. Shapes: n pairs (token, slot) sorted by expert; T tokens, K slots,
D width, F expert width, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.gpu_choice import n_processors
from coterie.kernels.training_reference import Pairs, sort_pairs
from coterie.kernels.triton_adam import adam_

__all__ = [
    "Pairs",
    "adam_",
    "clear_idle_",
    "combine",
    "cross_entropy_",
    "gather",
    "rms_norm",
    "rms_norm_backward",
    "sort_pairs",
    "swiglu",
    "swiglu_backward_",
]

_WORDS = 4096  # of the vocabulary at a time


@triton.jit
def _norm_kernel(x_ptr, weight_ptr, out_ptr, inverse_ptr, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_in = at < D
    x = tl.load(x_ptr + row * D + at, is_in, 0.0)
    weight = tl.load(weight_ptr + at, is_in, 0.0).to(tl.float32)
    wide = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
    quotient = (wide * inverse).to(x.dtype).to(tl.float32)
    tl.store(out_ptr + row * D + at, (quotient * weight).to(x.dtype), is_in)
    tl.store(inverse_ptr + row, inverse)


@triton.jit
def _norm_backward_kernel(
    x_ptr, weight_ptr, inverse_ptr, grad_ptr, grad_x_ptr, sums_ptr, T, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Every program takes some of the rows and leaves its part of the weight's gradient in a row of `sums`."""
    program, at = tl.program_id(0), tl.arange(0, BLOCK)
    is_in = at < D
    weight = tl.load(weight_ptr + at, is_in, 0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    start = program.to(tl.int64) * D
    for row in range(program, T, tl.num_programs(0)):
        inverse = tl.load(inverse_ptr + row)
        y = tl.load(x_ptr + start + at, is_in, 0.0).to(tl.float32) * inverse
        grad = tl.load(grad_ptr + start + at, is_in, 0.0).to(tl.float32)
        sums += grad * y
        grad_y = grad * weight
        grad_x = (grad_y - y * (tl.sum(grad_y * y, 0) / D)) * inverse
        tl.store(grad_x_ptr + start + at, grad_x.to(grad_x_ptr.dtype.element_ty), is_in)
        start += tl.num_programs(0).to(tl.int64) * D
    tl.store(sums_ptr + program.to(tl.int64) * D + at, sums, is_in)


@triton.jit
def _swiglu_kernel(h_ptr, end_ptr, out_ptr, F, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = (at < F) & (row < tl.load(end_ptr))
    gate = tl.load(h_ptr + row * 2 * F + at, is_in, 0.0).to(tl.float32)
    up = tl.load(h_ptr + row * 2 * F + F + at, is_in, 0.0).to(tl.float32)
    tl.store(out_ptr + row * F + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), is_in)


@triton.jit
def _swiglu_backward_kernel(
    h_ptr, end_ptr, weights_ptr, grad_ptr, grad_h_ptr, dots_ptr, F: tl.constexpr, BLOCK: tl.constexpr
):
    """silu' = s · (1 + gate · (1 - s)) with s = sigmoid(gate); a row beyond the end has no weight and no gradient."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_row = row < tl.load(end_ptr)
    weight = tl.load(weights_ptr + row, is_row, 0.0)
    dots = tl.zeros([BLOCK], tl.float32)
    for start in range(0, F, BLOCK):
        i = start + at
        is_in = (i < F) & is_row
        gate = tl.load(h_ptr + row * 2 * F + i, is_in, 0.0).to(tl.float32)
        up = tl.load(h_ptr + row * 2 * F + F + i, is_in, 0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * F + i, is_in, 0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        silu = gate * s
        a = silu * up
        dots += a * grad
        weighted = grad * weight
        to = grad_h_ptr.dtype.element_ty
        tl.store(grad_h_ptr + row * 2 * F + i, (weighted * up * (s + silu * (1 - s))).to(to), is_in)
        tl.store(grad_h_ptr + row * 2 * F + F + i, (weighted * silu).to(to), is_in)
        tl.store(grad_ptr + row * F + i, (a * weight).to(grad_ptr.dtype.element_ty), is_in)
    tl.store(dots_ptr + row, tl.sum(dots, 0))


@triton.jit
def _gather_kernel(x_ptr, pair_ptr, out_ptr, K, D: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(pair_ptr + row) // K
    tl.store(out_ptr + row * D + at, tl.load(x_ptr + token * D + at, at < D, 0.0), at < D)


@triton.jit
def _clear_kernel(ends_ptr, grads_ptr, n, BLOCK: tl.constexpr):
    """Zeros for an expert that got no rows."""
    expert = tl.program_id(1)
    if tl.load(ends_ptr + expert) == tl.load(ends_ptr + expert - 1, expert > 0, 0):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(grads_ptr + expert.to(tl.int64) * n + at, tl.zeros([BLOCK], grads_ptr.dtype.element_ty), at < n)


@triton.jit
def _combine_kernel(
    rows_ptr, place_ptr, weights_ptr, out_ptr, D: tl.constexpr, K: tl.constexpr, IS_WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < D
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        place = tl.load(place_ptr + token * K + slot)
        row = tl.load(rows_ptr + place * D + at, is_in & (place >= 0), 0.0).to(tl.float32)
        if IS_WEIGHTED:
            row = row * tl.load(weights_ptr + token * K + slot)
        total += row
    tl.store(out_ptr + token * D + at, total.to(out_ptr.dtype.element_ty), is_in)


@triton.jit
def _cross_entropy_kernel(logits_ptr, target_ptr, losses_ptr, V: tl.constexpr, BLOCK: tl.constexpr):
    """The largest number and the sum in one sweep, lane by lane; the gradient in a second, mostly from the cache."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    logits_ptr += row * V
    target = tl.load(target_ptr + row)
    counted = (target >= 0).to(tl.float32)
    most, sums = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        x = tl.load(logits_ptr + start + at, start + at < V, float("-inf")).to(tl.float32)
        higher = tl.maximum(most, x)
        is_nothing = (higher == float("-inf")) & (x == x)  # NaN is smaller than nothing here, and must not get lost
        sums = tl.where(is_nothing, 0.0, sums * tl.exp(most - higher) + tl.exp(x - higher))
        most = higher
    top = tl.max(most, 0)
    total = tl.sum(sums * tl.exp(most - top), 0)
    wanted = tl.load(logits_ptr + target, target >= 0, 0.0).to(tl.float32)
    tl.store(losses_ptr + row, tl.where(target >= 0, tl.log(total) + top - wanted, 0.0))
    for start in range(0, V, BLOCK):
        i = start + at
        x = tl.load(logits_ptr + i, i < V, float("-inf")).to(tl.float32)
        grad = (tl.exp(x - top) / total - tl.where(i == target, 1.0, 0.0)) * counted
        tl.store(logits_ptr + i, grad.to(logits_ptr.dtype.element_ty), i < V)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.rms_norm`, and 1 / sqrt(mean(x²) + eps) of each row, float32 [T]."""
    (T, D), out_TD = x_TD.shape, torch.empty_like(x_TD)
    assert x_TD.is_contiguous() and weight_D.is_contiguous()
    inverse_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    if T:
        _norm_kernel[(T,)](x_TD, weight_D, out_TD, inverse_T, eps, D, **_of_row(D))
    return out_TD, inverse_T


def rms_norm_backward(x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    (T, D), grad_TD, grad_x_TD = x_TD.shape, grad_TD.contiguous(), torch.empty_like(x_TD)
    assert x_TD.is_contiguous() and weight_D.is_contiguous() and grad_TD.shape == x_TD.shape
    n = max(1, min(T, 8 * n_processors(x_TD.device)))
    sums_nD = torch.empty((n, D), dtype=torch.float32, device=x_TD.device)
    _norm_backward_kernel[(n,)](x_TD, weight_D, inverse_T, grad_TD, grad_x_TD, sums_nD, T, D, **_of_row(D))
    return grad_x_TD, sums_nD.sum(0).to(weight_D.dtype)


def _of_row(D: int) -> dict[str, int]:
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def swiglu(h_n2F: Tensor, out_nF: Tensor, end: Tensor | None = None) -> None:
    """out = silu(gate) · up; rows from `end` (one int32) on are left as they are."""
    n, F = out_nF.shape
    assert h_n2F.shape == (n, 2 * F) and h_n2F.is_contiguous() and out_nF.is_contiguous()
    if n:
        end = _end(n, h_n2F) if end is None else end
        _swiglu_kernel[(n, triton.cdiv(F, 1024))](h_n2F, end, out_nF, F, BLOCK=1024, num_warps=4)


def swiglu_backward_(
    h_n2F: Tensor, weights_n: Tensor, grad_nF: Tensor, grad_h_n2F: Tensor, dots_n: Tensor, end: Tensor | None = None
) -> None:
    """`grad_nF`, the gradient of a = silu(gate) · up before the weight, becomes weight · a; dots = <a, grad>.

    Rows from `end` on get a dot of 0 and are otherwise left as they are.
    """
    n, F = grad_nF.shape
    assert h_n2F.shape == grad_h_n2F.shape == (n, 2 * F) and weights_n.shape == dots_n.shape == (n,)
    assert all(t.is_contiguous() for t in (h_n2F, weights_n, grad_nF, grad_h_n2F, dots_n))
    if n:
        end = _end(n, h_n2F) if end is None else end
        _swiglu_backward_kernel[(n,)](
            h_n2F, end, weights_n, grad_nF, grad_h_n2F, dots_n, F, BLOCK=min(1024, triton.next_power_of_2(F)),
            num_warps=4,
        )  # fmt: skip


def _end(n: int, like: Tensor) -> Tensor:
    return torch.full((1,), n, dtype=torch.int32, device=like.device)


def clear_idle_(grads: Tensor, ends_E: Tensor) -> None:
    """Zeros in the rows [e] of experts that got no pairs, whatever the product over none of them left there."""
    n, block = grads[0].numel(), 4096
    assert grads.is_contiguous() and len(grads) == len(ends_E)
    _clear_kernel[(triton.cdiv(n, block), len(grads))](ends_E, grads, n, BLOCK=block)


def gather(x_TD: Tensor, pair_N: Tensor, top_k: int) -> Tensor:
    """The row of each pair's token: x[pair // K]. torch's own `index_select` moves two bytes at a time."""
    N, D = len(pair_N), x_TD.shape[1]
    assert x_TD.is_contiguous() and pair_N.is_contiguous() and pair_N.dtype == torch.int64
    out_ND = x_TD.new_empty(N, D)
    if N:
        block = min(2048, triton.next_power_of_2(D))
        grid = (N, triton.cdiv(D, block))
        _gather_kernel[grid](x_TD, pair_N, out_ND, top_k, D, BLOCK=block, num_warps=max(1, block // 512))
    return out_ND


def combine(rows_ND: Tensor, place_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Σ over slots, in order and in float32, of weight · row; a place of -1 adds nothing -> [T, D]."""
    (T, K), D = place_TK.shape, rows_ND.shape[1]
    weights_TK = None if weights_TK is None else weights_TK.contiguous()
    assert rows_ND.is_contiguous() and place_TK.is_contiguous() and place_TK.dtype == torch.int64
    out_TD = rows_ND.new_empty(T, D)
    if T:
        block = min(2048, triton.next_power_of_2(D))
        _combine_kernel[(T, triton.cdiv(D, block))](
            rows_ND, place_TK, place_TK if weights_TK is None else weights_TK, out_TD, D, K, weights_TK is not None,
            BLOCK=block, num_warps=max(1, block // 512),
        )  # fmt: skip
    return out_TD


def cross_entropy_(logits_nV: Tensor, target_n: Tensor) -> Tensor:
    """The loss of each row, float32 [n]; the logits become their gradients. A target below 0: no loss, no gradient."""
    (n, V), target_n = logits_nV.shape, target_n.contiguous()
    assert logits_nV.is_contiguous() and target_n.dtype == torch.int64
    losses_n = torch.empty(n, dtype=torch.float32, device=logits_nV.device)
    if n:
        block = min(_WORDS, triton.next_power_of_2(V))
        _cross_entropy_kernel[(n,)](logits_nV, target_n, losses_n, V, BLOCK=block, num_warps=max(1, block // 512))
    return losses_n
