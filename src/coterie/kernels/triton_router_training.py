"""The router with gradients in Triton: logits in float32, and from their gradient those of the rows and the weight.

torch would make a float32 copy of all rows, twice; here they are read once in each direction, in the type they have.
`triton_route` chooses the experts. Shapes: T tokens, D model width, E experts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.gpu_choice import n_processors

__all__ = ["MOST_EXPERTS", "route_backward"]

MOST_EXPERTS = 128
_TILES = {16: (32, 64, 4), 64: (16, 32, 8), 128: (16, 16, 8)}  # experts up to -> rows, columns, warps: no spills


@triton.jit
def _backward_kernel(
    x_ptr, weight_ptr, grad_ptr, grad_x_ptr, sums_ptr, T, D, E: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK columns of every n-th group of rows, and leaves its part of the weight's gradient."""
    part, at = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row_1, expert = tl.arange(0, ROWS)[:, None].to(tl.int64), tl.arange(0, EXPERTS)
    is_weight = (expert[:, None] < E) & (at < D)
    weight = tl.load(weight_ptr + expert[:, None] * D + at, is_weight, 0.0)
    sums = tl.zeros([EXPERTS, BLOCK], tl.float32)
    for start in range(part * ROWS, T, tl.num_programs(1) * ROWS):
        row = start + row_1
        is_grad = (row < T) & (expert[None, :] < E)
        grad = tl.load(grad_ptr + row * E + expert[None, :], is_grad, 0.0)
        is_in = (row < T) & (at < D)
        x = tl.load(x_ptr + row * D + at, is_in, 0.0).to(tl.float32)
        sums = tl.dot(tl.trans(grad), x, sums, input_precision="ieee")
        grad_x = tl.dot(grad, weight, input_precision="ieee")
        tl.store(grad_x_ptr + row * D + at, grad_x.to(grad_x_ptr.dtype.element_ty), is_in)
    tl.store(sums_ptr + (part.to(tl.int64) * E + expert[:, None]) * D + at, sums, is_weight)


def route_backward(x_TD: Tensor, weight_ED: Tensor, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of logits = x · weightᵀ those of x, in its type, and of the weight, float32."""
    (T, D), E = x_TD.shape, len(weight_ED)
    assert x_TD.is_contiguous() and weight_ED.is_contiguous() and weight_ED.dtype == grad_TE.dtype == torch.float32
    grad_TE, grad_x_TD, experts = grad_TE.contiguous(), torch.empty_like(x_TD), max(16, triton.next_power_of_2(E))
    rows, block, warps = next(tile for most, tile in _TILES.items() if experts <= most)
    strips = triton.cdiv(D, block)
    n = max(1, min(triton.cdiv(T, rows), 8 * n_processors(x_TD.device) // strips))
    sums_nED = torch.empty((n, E, D), dtype=torch.float32, device=x_TD.device)
    _backward_kernel[(strips, n)](
        x_TD, weight_ED, grad_TE, grad_x_TD, sums_nED, T, D, E, ROWS=rows, EXPERTS=experts, BLOCK=block,
        num_warps=warps,
    )  # fmt: skip
    return grad_x_TD, sums_nED.sum(0)
