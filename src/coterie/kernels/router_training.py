"""The router with gradients by native kernels: rows are read in the type they have, where torch would widen them twice.

`reference.route` is its twin. Shapes: T tokens, D model width, E experts, K slots of a token.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training
from coterie.kernels.reference import kept_weights

__all__ = ["can_route", "logits", "route"]

_MOST_EXPERTS = 64  # from there on a matrix product is faster


def can_route(x_TD: Tensor, weight_ED: Tensor) -> bool:
    """Whether these functions take them."""
    return len(weight_ED) <= _MOST_EXPERTS and weight_ED.dtype == torch.float32 and training.is_usable(x_TD, weight_ED)


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.route`: ids int32 [T, K], weights [T, K], logits [T, E]."""
    ids_TK, logits_TE = _Route.apply(x_TD.contiguous(), weight_ED.contiguous(), top_k)  # type: ignore[no-untyped-call]
    return ids_TK, kept_weights(logits_TE.gather(-1, ids_TK.long()), logits_TE, renormalise), logits_TE


def logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x · weightᵀ in float32 [T, E]."""
    logits_TE: Tensor = _Route.apply(x_TD.contiguous(), weight_ED.contiguous(), 0)[1]  # type: ignore[no-untyped-call]
    return logits_TE


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        ids_TK, _, logits_TE = training.route(x_TD, weight_ED, top_k, True)
        ctx.save_for_backward(x_TD, weight_ED)
        ctx.mark_non_differentiable(ids_TK)
        return ids_TK, logits_TE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TD, weight_ED = ctx.saved_tensors
        grad_x_TD, grad_ED = training.route_backward(x_TD, weight_ED, grads[1])
        return grad_x_TD, grad_ED, None
