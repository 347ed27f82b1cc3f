"""AdamW in Triton: a step of one parameter in one sweep over memory, from a gradient in whatever type it came in.

`training_reference.adam_` is the specification. Torch's own fused AdamW wants gradients in the type of the masters: a
float32 copy of them all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coterie.kernels.training_reference import AdamSettings

__all__ = ["adam_"]

_BLOCK = 2048


@triton.jit
def _adam_kernel(
    master_ptr, grad_ptr, mean_ptr, square_ptr, out_ptr, n, scale, keep, new1, beta2, new2, step, root, eps,
    HAS_OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < n
    g = tl.load(grad_ptr + at, is_in, 0.0).to(tl.float32) * scale
    mean, square = tl.load(mean_ptr + at, is_in, 0.0), tl.load(square_ptr + at, is_in, 0.0)
    mean += new1 * (g - mean)
    square = beta2 * square + new2 * g * g
    master = tl.load(master_ptr + at, is_in, 0.0)
    master = keep * master - step * mean / (tl.sqrt(square) / root + eps)
    tl.store(mean_ptr + at, mean, is_in)
    tl.store(square_ptr + at, square, is_in)
    tl.store(master_ptr + at, master, is_in)
    if HAS_OUT:
        tl.store(out_ptr + at, master.to(out_ptr.dtype.element_ty), is_in)


def adam_(
    master: Tensor, grad: Tensor, mean: Tensor, square: Tensor, out: Tensor | None, settings: AdamSettings
) -> None:
    """`out` takes the rounded weights."""
    n, tensors = grad.numel(), (master, mean, square)
    assert all(t.dtype == torch.float32 and t.is_contiguous() and t.numel() == n for t in tensors)
    assert grad.is_contiguous() and (out is None or (out.is_contiguous() and out.dtype != torch.float32))
    if n:
        s = settings
        numbers = (s.scale, s.keep, 1 - s.beta1, s.beta2, 1 - s.beta2, s.step, s.root, s.eps)
        _adam_kernel[(triton.cdiv(n, _BLOCK),)](
            *(master, grad, mean, square, master if out is None else out), n, *numbers,
            HAS_OUT=out is not None, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
