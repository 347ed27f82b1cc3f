"""Plain torch where no gradient is asked for and no native kernel is there: `reference` in fewer calls, less memory.

Decoding one sequence is a thousand small calls and one read of the weights, so a single row takes as few calls as
possible. Reading a prompt makes temporaries of megabytes, which the allocator hands back to the kernel and gets anew,
page by page; so many rows are taken a block at a time, that fits the cache, and products are made in place.
Shapes as in `reference`; K outputs a token.
"""

import torch
from torch import Tensor
from torch.nn import functional

from coterie.kernels import reference

__all__ = ["combine", "gated_ffn", "rms_norm"]

_BLOCK = 1 << 18  # elements: 1 MB in float32


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`."""
    T, D = x_TD.shape
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    if T == 1:
        norm: float = torch.linalg.vector_norm(x_TD, dtype=dtype).item()
        factor: float = (norm * norm / D + eps) ** -0.5
        return (x_TD * factor).mul_(weight_D)
    y_TD = torch.empty_like(x_TD)
    n = max(1, _BLOCK // D)
    for x_nD, y_nD in zip(torch.split(x_TD, n), torch.split(y_TD, n), strict=True):
        norm_n1 = torch.linalg.vector_norm(x_nD, dim=1, keepdim=True, dtype=dtype)
        y_nD.copy_(x_nD * norm_n1.square_().div_(D).add_(eps).rsqrt_()).mul_(weight_D)
    return y_TD


def gated_ffn(x_TD: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """As `reference.gated_ffn`."""
    gate_TF, up_TF = functional.linear(x_TD, gate_up_2FD).chunk(2, -1)
    return functional.linear(functional.silu(gate_TF).mul_(up_TF), down_DF)


def combine(out_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """As `reference.combine`."""
    n = max(1, _BLOCK // out_TKD.shape[2])
    y_TD = torch.empty_like(out_TKD[:, 0])
    blocks = zip(*(torch.split(t, n) for t in (y_TD, out_TKD, weights_TK)), strict=True)
    for y_nD, out_nKD, weights_nK in blocks:
        y_nD.copy_(reference.combine(out_nKD, weights_nK))
    return y_TD
