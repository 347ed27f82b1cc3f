"""A linear layer with gradients by native products in bf16. Shapes: T tokens, D inputs, N outputs."""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training_products

__all__ = ["linear"]


def linear(x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    """x · weightᵀ, for tensors that `training_products.has_products` takes."""
    y_TN: Tensor = _Linear.apply(x_TD, weight_ND)  # type: ignore[no-untyped-call]
    return y_TN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ND: Tensor) -> Tensor:
        x_TD, weight_ND = x_TD.contiguous(), weight_ND.contiguous()
        ctx.save_for_backward(x_TD, weight_ND)
        return training_products.product(x_TD, training_products.strips_of_rows(weight_ND), len(weight_ND))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_TD, weight_ND = ctx.saved_tensors
        grad_TN, (needs_x, needs_weight) = grads[0].contiguous(), ctx.needs_input_grad
        strips = training_products.strips_of_columns(weight_ND) if needs_x else None
        grad_x_TD = None if strips is None else training_products.product(grad_TN, strips, x_TD.shape[1])
        return grad_x_TD, training_products.transposed_product(grad_TN, x_TD) if needs_weight else None
