"""Causal attention on a CPU: the products as batched matmuls over blocks of queries.

torch's fused kernel reaches a tenth of the speed of its matmuls here. A block of queries meets only the keys up to its
own end. This is how a prompt is read: nothing is kept, and scores are float32; `causal_training` has the gradients.
Shapes as in `reference`, for as many queries as keys; r = H/G query heads share a key head.
"""

import torch
from torch import Tensor

__all__ = ["causal_attention_without_gradients"]

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
