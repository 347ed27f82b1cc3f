"""RMSNorm with gradients by native kernels; `reference.rms_norm` is its twin. Shapes: T tokens, D model width."""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training

__all__ = ["rms_norm"]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`, for contiguous x and weight of one dtype."""
    y_TD: Tensor = _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[no-untyped-call]
    return y_TD


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y_TD, inverse_T = training.operations(x_TD, weight_D).rms_norm(x_TD, weight_D, eps)
        ctx.save_for_backward(x_TD, weight_D, inverse_T)
        return y_TD  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TD, weight_D, inverse_T = ctx.saved_tensors
        operations = training.operations(x_TD, weight_D, grads[0])
        grad_x_TD, grad_weight_D = operations.rms_norm_backward(x_TD, weight_D, inverse_T, grads[0])
        return grad_x_TD, grad_weight_D, None
