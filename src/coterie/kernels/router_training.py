"""The router with gradients by kernels: rows are read in the type they have, where torch would widen them twice.

`reference.route` is its twin. `operations` has `route` and `route_backward`: `training` on a CPU, on a card what
`gpu_training` hands in. Logits alone are kept of what is chosen.
Shapes: T tokens, D model width, E experts, K slots of a token.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels.reference import kept_weights

__all__ = ["logits", "route"]


def route(
    x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalise: bool, operations: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.route`: ids int32 [T, K], weights [T, K], logits [T, E]."""
    ids_TK, logits_TE = _apply(x_TD, weight_ED, top_k, operations)
    return ids_TK, kept_weights(logits_TE.gather(-1, ids_TK.long()), logits_TE, renormalise), logits_TE


def logits(x_TD: Tensor, weight_ED: Tensor, operations: Any) -> Tensor:
    """x · weightᵀ in float32 [T, E]."""
    return _apply(x_TD, weight_ED, 0, operations)[1]


def _apply(x_TD: Tensor, weight_ED: Tensor, top_k: int, operations: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _Route.apply(  # type: ignore[no-untyped-call]
        x_TD.contiguous(), weight_ED.contiguous(), top_k, operations
    )
    return found


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, top_k: int, operations: Any) -> tuple[Tensor, Tensor]:
        ids_TK, logits_TE = operations.route(x_TD, weight_ED, top_k)
        ctx.save_for_backward(x_TD, weight_ED)
        ctx.operations = operations
        ctx.mark_non_differentiable(ids_TK)
        return ids_TK, logits_TE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_TD, weight_ED = ctx.saved_tensors
        grad_x_TD, grad_ED = ctx.operations.route_backward(x_TD, weight_ED, grads[1])
        return grad_x_TD, grad_ED, None, None
