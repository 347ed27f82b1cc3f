"""The steps that routers share: the best of their logits, the weight of each slot, and who stays where room is short.

Shapes: T tokens, D model width, E experts, K slots a token, N = T·K (token, slot) pairs.
"""

import math

import torch
from torch import Tensor

__all__ = ["best", "softmax_at", "uniform_like", "within_capacity"]


def best(scores_TE: Tensor, n: int) -> Tensor:
    """The ids of the n largest of each row, best first, the lowest id among equals: int64 [T, n]."""
    return scores_TE.argsort(dim=-1, descending=True, stable=True).narrow(-1, 0, n)


def softmax_at(logits_TE: Tensor, ids_TK: Tensor, renormalise: bool) -> Tensor:
    """The softmax of the logits at these ids, over these alone or over all experts: [T, K]."""
    kept_TK = logits_TE.gather(-1, ids_TK)
    return kept_TK.softmax(-1) if renormalise else (kept_TK - logits_TE.logsumexp(-1, keepdim=True)).exp()


def within_capacity(
    ids_TK: Tensor, n_experts: int, factor: float, score_TK: Tensor | None = None, mask_T: Tensor | None = None
) -> Tensor:
    """Which slots find room where an expert takes ceil(factor · T·K / E) of them: bool [T, K] (arXiv 2101.03961).

    Room goes to the first in the text or, given `score_TK`, to the largest scores. Padding takes no room and keeps its
    slots; slots of -1 have none.
    Example, E=2, T=4, K=1, factor 1: two places each; ids [0, 0, 0, 1] leave out the third token.
    """
    flat_N = ids_TK.reshape(-1).long()
    counts_N = (
        torch.ones_like(flat_N, dtype=torch.bool) if mask_T is None else mask_T.repeat_interleave(ids_TK.shape[1])
    )
    wanted_N = torch.where(counts_N & (flat_N >= 0), flat_N, n_experts)
    first_N = None if score_TK is None else score_TK.detach().reshape(-1).argsort(descending=True, stable=True)
    order_N = (wanted_N if first_N is None else wanted_N[first_N]).argsort(stable=True)
    order_N = order_N if first_N is None else first_N[order_N]
    sizes = torch.bincount(wanted_N, minlength=n_experts + 1)
    rank_N = torch.arange(len(flat_N), device=flat_N.device) - (sizes.cumsum(0) - sizes)[wanted_N[order_N]]
    n_tokens = len(ids_TK) if mask_T is None else int(mask_T.sum())
    room = math.ceil(factor * n_tokens * ids_TK.shape[1] / n_experts)
    fits_N = torch.empty_like(counts_N)
    fits_N[order_N] = rank_N < room
    return ((fits_N | ~counts_N) & (flat_N >= 0)).view_as(ids_TK)


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers from 0 to below 1, of x's shape, type and device."""
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
