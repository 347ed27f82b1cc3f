"""Causal attention with gradients, on qkv as it comes from its projection: queries and keys are turned here.

On a CPU the native kernels of `csrc/training_attention.h` (arXiv 2205.14135): no scores are kept. Elsewhere, and in
float64, the heads are split and turned, then products are batched matmuls over blocks of queries: a block meets only
the keys up to its own end, and the probabilities are kept for backward, B·H·S²·5/8 numbers of the inputs' type a layer
for four blocks. There scores are rounded to that type too; softmax sums in float32.
Shapes: T = B·S rows of B sequences, H query heads, G key heads, r = H/G, P head width, n queries of a block, C keys.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training, training_reference

__all__ = ["causal_self_attention"]

_MOST_BLOCKS, _SMALLEST_BLOCK = 16, 128

Rotary = tuple[Tensor, Tensor]


def causal_self_attention(
    qkv: Tensor, rotary: Rotary, n_sequences: int, n_kv_heads: int, documents_BS: Tensor | None = None
) -> Tensor:
    """qkv [T, H + 2G, P], not yet turned -> [T, H·P], T = `n_sequences` · S.

    Position i of a sequence looks at positions j <= i, with `documents_BS` (integers) at those of its own document.
    """
    T = len(qkv)
    cos, sin = (t.to(torch.promote_types(qkv.dtype, torch.float32)).contiguous() for t in rotary)
    if documents_BS is not None:
        _, numbers = torch.unique(documents_BS, return_inverse=True)
        documents_BS = numbers.view(n_sequences, T // n_sequences).float()
    is_native = training.has_causal_attention(qkv, n_kv_heads)
    function = _Native if is_native else _Batched
    y: Tensor = function.apply(qkv, cos, sin, n_sequences, n_kv_heads, documents_BS)  # type: ignore[no-untyped-call]
    return y


class _Native(torch.autograd.Function):
    """Besides the inputs only the output and a number a query are kept."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, B: int, G: int, documents_BS: Tensor | None) -> Tensor:
        qkv = qkv.contiguous()
        out, logs_BHS = training.causal_attention(qkv, (cos, sin), B, G, documents_BS)
        y = out.flatten(1)
        ctx.save_for_backward(qkv, cos, sin, documents_BS, y, logs_BHS)
        ctx.n_kv_heads = G
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        qkv, cos, sin, documents_BS, y, logs_BHS = ctx.saved_tensors
        out, grad = (t.unflatten(1, (-1, qkv.shape[2])) for t in (y, grads[0]))
        grad_qkv = training.causal_attention_backward(
            qkv, (cos, sin), ctx.n_kv_heads, documents_BS, out, logs_BHS, grad
        )
        return grad_qkv, None, None, None, None, None


def _blocks(S: int) -> list[tuple[int, int]]:
    size = max(_SMALLEST_BLOCK, -(-S // _MOST_BLOCKS))
    return [(start, min(start + size, S)) for start in range(0, S, size)]


class _Batched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, B: int, G: int, documents_BS: Tensor | None) -> Tensor:
        T, n_heads, P = qkv.shape
        S, H = T // B, n_heads - 2 * G
        q_rows, k_rows, v_rows = torch.split(qkv.view(B, S, n_heads, P), [H, G, G], 2)
        q = training_reference.split_heads(q_rows, (cos, sin), P**-0.5).view(B * G, H // G, S, P)
        k = training_reference.split_heads(k_rows, (cos, sin), 1.0).view(B * G, S, P)
        v = training_reference.split_heads(v_rows, None, 1.0).view(B * G, S, P)
        out = torch.empty_like(q)
        probabilities = []
        for start, stop in _blocks(S):
            q_block = q[:, :, start:stop]
            p = torch.bmm(q_block.flatten(1, 2), k[:, :stop].mT).view(*q_block.shape[:3], stop)
            training_reference.softmax_(p, documents_BS)
            out[:, :, start:stop] = torch.bmm(p.flatten(1, 2), v[:, :stop]).view_as(q_block)
            probabilities.append(p)
        ctx.save_for_backward(cos, sin, q, k, v, *probabilities)
        ctx.sizes = (B, S, H, G, P)
        y = qkv.new_empty(B, S, H, P)
        training_reference.merge_heads(out.view(B, H, S, P), None, 1.0, y)
        return y.view(T, H * P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        cos, sin, q, k, v, *probabilities = ctx.saved_tensors
        B, S, H, G, P = ctx.sizes
        grad = training_reference.split_heads(grads[0].contiguous().view(B, S, H, P), None, 1.0).view_as(q)
        grad_q = torch.empty_like(q)
        wide = torch.promote_types(k.dtype, torch.float32)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for (start, stop), p in zip(_blocks(S), probabilities, strict=True):
            q_block, grad_block = (x[:, :, start:stop].flatten(1, 2) for x in (q, grad))
            grad_v[:, :stop] += torch.bmm(p.flatten(1, 2).mT, grad_block)
            grad_p = torch.bmm(grad_block, v[:, :stop].mT).view_as(p)
            training_reference.softmax_backward_(p, grad_p)
            grad_scores = grad_p.flatten(1, 2)
            grad_q[:, :, start:stop] = torch.bmm(grad_scores, k[:, :stop]).view_as(q[:, :, start:stop])
            grad_k[:, :stop] += torch.bmm(grad_scores.mT, q_block)
        grad_qkv = q.new_empty(B, S, H + 2 * G, P)
        q_rows, k_rows, v_rows = torch.split(grad_qkv, [H, G, G], 2)
        training_reference.merge_heads(grad_q.view(B, H, S, P), (cos, sin), P**-0.5, q_rows)
        training_reference.merge_heads(grad_k.to(k.dtype).view(B, G, S, P), (cos, sin), 1.0, k_rows)
        training_reference.merge_heads(grad_v.to(v.dtype).view(B, G, S, P), None, 1.0, v_rows)
        return grad_qkv.view(B * S, H + 2 * G, P), None, None, None, None, None
