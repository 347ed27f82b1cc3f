"""Cross-entropy fused with the output head, a block of rows at a time.

A 2^16-token batch over 8,192 words would hold 2 GB of logits, several times over in backward. Here a block of logits
lives just long enough to give its loss and both of its gradients, so nothing of size T·V is ever kept.
Shapes: T tokens, D model width, V vocabulary, n rows of a block.
"""

from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training, training_products

__all__ = ["highest_bytes", "linear_cross_entropy", "rows_of_block"]

_BLOCK = 4096  # rows times bytes of a number: 32 MB of logits at a vocabulary of 8,192
_CARD = 1 << 28  # logits of a block on a card, where small products are slow


def rows_of_block(vocabulary: int, compute: torch.dtype, device: str) -> int:
    """Of a device type; a multiple of 256. Example: 8,192 rows of a vocabulary of 32,000 on a card."""
    return _BLOCK // compute.itemsize if device != "cuda" else max(1, _CARD // vocabulary // 512) * 512


def highest_bytes(tokens: int, width: int, vocabulary: int, compute: torch.dtype, device: str) -> int:
    """Of `linear_cross_entropy` with gradients: both of them, and what the block of logits takes that is in work.

    The native products of bf16 hold the weight in strips twice and beside a block its strips; when they are done, the
    gradient of the weight is rounded.
    """
    b = compute.itemsize
    weight, block = vocabulary * width, min(tokens, rows_of_block(vocabulary, compute, device)) * vocabulary
    gradients = tokens * width * b + weight * max(4, b)
    if device == "cuda":
        return gradients + (weight * b if b < 4 else 0) + block * b
    sides = torch.empty(0, width, dtype=compute), torch.empty(0, vocabulary, dtype=compute)
    if training_products.has_products(*sides):
        return gradients + (2 * weight + block + max(block, weight)) * b
    return gradients + block * (b if training.is_usable(*sides) else 4 + b)  # the twin makes a wide copy


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, compute: torch.dtype) -> Tensor:
        """Sum of the losses over targets >= 0; gradients are computed here and only scaled in backward."""
        weight = weight_VD.to(compute)
        weight_rows, operations = weight.contiguous(), training.operations(weight)
        products = training_products.products(weight_rows, weight_rows.t())
        right, right_back = products.strips_of_rows(weight_rows), products.strips_of_columns(weight_rows)
        precise = torch.promote_types(compute, torch.float32)
        losses = x_TD.new_zeros(len(x_TD), dtype=precise)
        grad_x = torch.empty_like(x_TD)
        grad_weight = torch.zeros(weight_VD.shape, dtype=precise, device=x_TD.device)
        n = rows_of_block(len(weight), compute, x_TD.device.type)
        for start in range(0, len(x_TD), n):
            rows = slice(start, start + n)
            x_nD = x_TD[rows].to(compute).contiguous()
            logits_nV = products.product(x_nD, right, len(weight))
            losses[rows] = operations.cross_entropy_(logits_nV, targets_T[rows])  # they are their gradient now
            grad_x[rows] = products.product(logits_nV, right_back, x_TD.shape[1])
            products.add_transposed_product_(grad_weight, logits_nV, x_nD)
            del logits_nV  # or the next block would be made beside it
        ctx.save_for_backward(grad_x, grad_weight.to(weight_VD.dtype))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None, None


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, compute: torch.dtype = torch.float32
) -> Tensor:
    """Σ over rows of -log softmax(x · weightᵀ)[target], in nats; a target below 0 is not counted.

    `compute` is the dtype of the three matrix products; softmax and sums are float32, or float64 where that is.
    """
    if not torch.is_grad_enabled():
        return _without_gradients(x_TD, weight_VD, targets_T, compute)
    loss: Tensor = _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, compute)  # type: ignore[no-untyped-call]
    return loss


def _without_gradients(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, compute: torch.dtype) -> Tensor:
    weight = weight_VD.to(compute)
    operations = training.operations(weight)
    total = x_TD.new_zeros((), dtype=torch.promote_types(compute, torch.float32))
    n = rows_of_block(len(weight), compute, x_TD.device.type)
    for x_nD, target_n in zip(torch.split(x_TD, n), torch.split(targets_T, n), strict=True):
        logits_nV = x_nD.to(compute) @ weight.T
        total += operations.cross_entropy_(logits_nV, target_n).sum()
        del logits_nV  # or the next block would be made beside it
    return total
