"""Products of bf16 in the processor's own instruction (`csrc/training_products.h`), and the sparse block made of them.

A right side is laid out in strips once and multiplied as often as needed. `training_reference` is the twin, whose
strips are views. A result has the same bits with any number of threads.
Shapes: T, n rows, K summed over, M, N columns; in the sparse block T tokens, N pairs sorted by expert, E experts,
D width, F expert width.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from coterie.kernels import training, training_reference

__all__ = [
    "add_transposed_product_",
    "has_products",
    "product",
    "products",
    "sparse_ffn",
    "sparse_ffn_backward",
    "strips_of_columns",
    "strips_of_rows",
    "transposed_product",
]

_STRIP = 32  # columns


def has_products(*tensors: Tensor) -> bool:
    """Whether the products of these take such matrices: bf16 where the processor multiplies it, and even sizes.

    The number of rows that are summed over or multiplied may be any.
    """
    if not all(t.dtype == torch.bfloat16 and t.shape[-1] % 2 == 0 for t in tensors) or not training.is_usable(*tensors):
        return False
    return bool(training.module().has_bf16_products())


def products(*tensors: Tensor) -> Any:
    """The module to take matrix products with gradients from: this one or its twin, whose strips are views."""
    return _THIS if has_products(*tensors) else training_reference


def strips_of_rows(x_NK: Tensor) -> Tensor:
    """x as the right side of `product`: of y · xᵀ."""
    return _strips(x_NK, x_NK.shape[0], x_NK.shape[1], of_rows=True)


def strips_of_columns(x_KN: Tensor) -> Tensor:
    """x as the right side of `product`: of y · x."""
    return _strips(x_KN, x_KN.shape[1], x_KN.shape[0], of_rows=False)


def _strips(x: Tensor, n_columns: int, inner: int, *, of_rows: bool) -> Tensor:
    assert x.is_contiguous() and x.dtype == torch.bfloat16
    out = torch.empty(-(-n_columns // _STRIP), -(-inner // 2), _STRIP, dtype=torch.int32)
    training.module().strips(x.data_ptr(), *x.shape, of_rows, out.data_ptr())
    return out


def product(x_TK: Tensor, strips: Tensor, n_columns: int) -> Tensor:
    """x · right side -> [T, n_columns], sums in float32."""
    (T, K), out_TN = x_TK.shape, x_TK.new_empty(len(x_TK), n_columns)
    assert x_TK.is_contiguous() and x_TK.dtype == torch.bfloat16 and 2 * strips.shape[1] == K
    assert -(-n_columns // _STRIP) == len(strips)
    training.module().product(x_TK.data_ptr(), T, K, n_columns, strips.data_ptr(), out_TN.data_ptr())
    return out_TN


def transposed_product(a_nM: Tensor, b_nN: Tensor) -> Tensor:
    """aᵀ · b -> [M, N] in their type."""
    out_MN = a_nM.new_empty(a_nM.shape[1], b_nN.shape[1])
    _transposed_product(a_nM, b_nN, out_MN.data_ptr(), 0)
    return out_MN


def add_transposed_product_(sums_MN: Tensor, a_nM: Tensor, b_nN: Tensor) -> None:
    """sums += aᵀ · b, the sums float32."""
    assert (
        sums_MN.dtype == torch.float32 and sums_MN.is_contiguous() and sums_MN.shape == (a_nM.shape[1], b_nN.shape[1])
    )
    _transposed_product(a_nM, b_nN, 0, sums_MN.data_ptr())


def _transposed_product(a_nM: Tensor, b_nN: Tensor, out: int, sums: int) -> None:
    assert all(t.is_contiguous() and t.dtype == torch.bfloat16 and len(t) == len(a_nM) for t in (a_nM, b_nN))
    training.module().transposed_product(a_nM.data_ptr(), b_nN.data_ptr(), *a_nM.shape, b_nN.shape[1], out, sums)


def sparse_ffn(
    x_TD: Tensor, token_N: Tensor, counts_E: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor]:
    """Gate and up of each pair [N, 2F], and what the experts make of them [N, D]."""
    (E, D, F), N = down_EDF.shape, len(token_N)
    assert gate_up_E2FD.shape == (E, 2 * F, D) and x_TD.shape[1] == D and token_N.dtype == counts_E.dtype == torch.int64
    assert all(t.is_contiguous() for t in (x_TD, gate_up_E2FD, down_EDF, token_N, counts_E))
    y_ND, h_N2F = x_TD.new_empty(N, D), x_TD.new_empty(N, 2 * F)
    module, scratch = training.module(), _sparse_scratch(counts_E, down_EDF, is_backward=False)
    module.sparse_forward(
        D, F, E, token_N.data_ptr(), counts_E.data_ptr(), x_TD.data_ptr(), gate_up_E2FD.data_ptr(),
        down_EDF.data_ptr(), h_N2F.data_ptr(), y_ND.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    return h_N2F, y_ND


def sparse_ffn_backward(
    grad_TD: Tensor, token_N: Tensor, counts_E: Tensor, weights_N: Tensor, x_TD: Tensor, h_N2F: Tensor,
    gate_up_E2FD: Tensor, down_EDF: Tensor, needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of x of each pair [N, D], the weights, gate_up and down; `needs` says of which but the second."""
    (E, D, F), N = down_EDF.shape, len(token_N)
    assert grad_TD.is_contiguous() and grad_TD.dtype == torch.bfloat16 and grad_TD.shape[1] == D
    assert weights_N.dtype == torch.float32 and weights_N.is_contiguous() and weights_N.shape == (N,)
    shapes = ((N, D), gate_up_E2FD.shape, down_EDF.shape)
    grads = [x_TD.new_empty(shape) if is_needed else None for shape, is_needed in zip(shapes, needs, strict=True)]
    at_x, at_gate_up, at_down = (0 if t is None else t.data_ptr() for t in grads)
    dots_N, module, scratch = torch.empty(N), training.module(), _sparse_scratch(counts_E, down_EDF, is_backward=True)
    module.sparse_backward(
        D, F, E, token_N.data_ptr(), counts_E.data_ptr(), x_TD.data_ptr(), gate_up_E2FD.data_ptr(),
        down_EDF.data_ptr(), h_N2F.data_ptr(), scratch.data_ptr(), grad_TD.data_ptr(), weights_N.data_ptr(), at_x,
        dots_N.data_ptr(), at_gate_up, at_down,
    )  # fmt: skip
    return grads[0], dots_N, grads[1], grads[2]


def _sparse_scratch(counts_E: Tensor, down_EDF: Tensor, *, is_backward: bool) -> Tensor:
    E, D, F = down_EDF.shape
    n = training.module().sparse_scratch(D, F, E, counts_E.data_ptr(), is_backward)
    return torch.empty(n, dtype=torch.int32)


_THIS: ModuleType = sys.modules[__name__]
