"""Causal attention on a CPU: the products as batched matmuls over blocks of queries.

torch's fused kernel reaches a tenth of the speed of its matmuls here. A block of queries meets only the keys up to its
own end. For training, in bfloat16, the probabilities are kept for backward (B·H·S²·5/8 elements a layer, for four
blocks); reading a prompt keeps nothing and has its scores in float32, as the fused kernel has.
Shapes as in `reference`, for as many queries as keys; r = H/G query heads share a key head.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["causal_attention", "causal_attention_without_gradients"]

_MOST_BLOCKS, _SMALLEST_BLOCK = 16, 128
_PROMPT_BLOCK, _MOST_SCORES = 64, 1 << 22  # queries; scores of a block: 16 MB


def causal_attention_without_gradients(q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
    """As `reference.attention` without a mask and with `is_causal` -> [B, S, H, P].

    Scores and softmax are float32; the probabilities are rounded to bfloat16 where the values are that.
    """
    B, S, H, P = q_BSHP.shape
    G = k_BSGP.shape[2]
    wide = torch.promote_types(q_BSHP.dtype, torch.float32)
    q, k = _by_head(q_BSHP.to(wide) * P**-0.5, G), _by_head(k_BSGP.to(wide), G).squeeze(1)
    v = _by_head(v_BSGP if v_BSGP.dtype == torch.bfloat16 else v_BSGP.to(wide), G).squeeze(1)
    out = v_BSGP.new_empty(q.shape)
    size = max(1, min(_PROMPT_BLOCK, _MOST_SCORES // (B * H * S)))
    for start in range(0, S, size):
        stop = min(start + size, S)
        p = _scores(q[:, :, start:stop], k, start, stop).softmax(-1).to(v.dtype)
        out[:, :, start:stop] = torch.bmm(p.flatten(1, 2), v[:, :stop]).view_as(q[:, :, start:stop])
    return out.view(B, H, S, P).transpose(1, 2)


def causal_attention(q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
    """The same with gradients. Scores are rounded to the dtype of the inputs too; softmax sums in float32."""
    y_BSHP: Tensor = _CausalAttention.apply(q_BSHP, k_BSGP, v_BSGP)  # type: ignore[no-untyped-call]
    return y_BSHP


def _blocks(S: int) -> list[tuple[int, int]]:
    size = max(_SMALLEST_BLOCK, -(-S // _MOST_BLOCKS))
    return [(start, min(start + size, S)) for start in range(0, S, size)]


def _by_head(x_BSNP: Tensor, n_groups: int) -> Tensor:
    """[B, S, N, P] -> [B·G, N/G, S, P], contiguous."""
    B, S, N, P = x_BSNP.shape
    return x_BSNP.transpose(1, 2).reshape(B * n_groups, N // n_groups, S, P)


def _scores(q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """Of the queries start..stop-1 (q [B·G, r, stop - start, P]) with the keys before stop (k [B·G, S, P])."""
    later = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).triu(1)
    scores = torch.bmm(q.flatten(1, 2), k[:, :stop].mT).view(*q.shape[:3], stop)
    scores[..., start:].masked_fill_(later, -torch.inf)
    return scores


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BSHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        B, S, H, P = q_BSHP.shape
        G = k_BSGP.shape[2]
        q, k, v = (_by_head(x, G) for x in (q_BSHP * P**-0.5, k_BSGP, v_BSGP))
        k, v = k.squeeze(1), v.squeeze(1)
        out = torch.empty_like(q)
        probabilities = []
        for start, stop in _blocks(S):
            p = _scores(q[:, :, start:stop], k, start, stop).softmax(-1)
            out[:, :, start:stop] = torch.bmm(p.flatten(1, 2), v[:, :stop]).view_as(q[:, :, start:stop])
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.shape = (B, S, H, P)
        return out.view(B, H, S, P).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *probabilities = ctx.saved_tensors
        B, S, H, P = ctx.shape
        G = len(k) // B
        grad = _by_head(grads[0], G)
        grad_q = torch.empty_like(q)
        wide = torch.promote_types(k.dtype, torch.float32)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for (start, stop), p in zip(_blocks(S), probabilities, strict=True):
            q_block, grad_block = (x[:, :, start:stop].flatten(1, 2) for x in (q, grad))
            grad_v[:, :stop] += torch.bmm(p.flatten(1, 2).mT, grad_block)
            grad_p = torch.bmm(grad_block, v[:, :stop].mT).view_as(p)
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).flatten(1, 2)
            grad_q[:, :, start:stop] = torch.bmm(grad_scores, k[:, :stop]).view_as(q[:, :, start:stop])
            grad_k[:, :stop] += torch.bmm(grad_scores.mT, q_block)
        grad_k, grad_v = grad_k.to(k.dtype), grad_v.to(v.dtype)
        grad_q = (grad_q * P**-0.5).view(B, H, S, P).transpose(1, 2)
        return grad_q, grad_k.view(B, G, S, P).transpose(1, 2), grad_v.view(B, G, S, P).transpose(1, 2)
